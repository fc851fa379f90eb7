"""LoRA files, read and written without a model: tensors and scales of every adapter under the file's own names.

Both layouts that the field uses are here, with the older spellings of diffusers. Which map of a model a name means is
`lora_layouts`, and whether a file fits is `lora_weights`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vega_diffusion.errors import MissingFile, UnreadableModel, VegaError
from vega_diffusion.models.lora_layouts import ADAPTABLE, Layout, neutral_path, published_path
from vega_diffusion.models.safetensors_file import write_safetensors
from vega_diffusion.specs.lora import LORA_FILE

DESCRIPTION_KEY = "lora_adapter_metadata"
"""Metadata entry in which diffusers keeps the settings of adapters."""

_KOHYA_ROLES = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha", "dora_scale": "magnitude"}
_DIFFUSERS_ROLES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
}
# Before PEFT, diffusers called the attention maps of text encoders by the names of U-Nets.
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OTHER_METHODS = {
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "a LoRA in three factors",
    "oft_": "OFT",
    ".diff": "a full difference",
    "lora_embedding_A": "a LoRA of embeddings",
    "lora_B.bias": "a LoRA with biases",
}


@dataclass(frozen=True)
class Adapter:
    """The low-rank change `alpha / rank * up down` of one map; with a magnitude also its length, row by row (DoRA).

    Attributes:
        down: A, `[r, in]` or `[r, in, kh, kw]`.
        up: B, `[out, r]` or `[out, r, 1, 1]`.
        alpha: Numerator of the scale.
        magnitude: Lengths of the changed rows `[out]`, or None.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds.

    Attributes:
        layout: Of its names.
        adapters: Name -> adapter. kohya's names are as in the file; diffusers' are component and neutral path, joined
            by a dot, whatever spelling the file has.
        metadata: Entries of the file's header, those aside that follow from the adapters.
        name: What to call the file in messages.
    """

    layout: Layout
    adapters: Mapping[str, Adapter]
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = LORA_FILE


def lora_path(place: str | Path, where: str = "loras") -> Path:
    """Return a LoRA file: the path itself, or the file of diffusers' name in a folder.

    Raises:
        MissingFile: There is none; `where` is the field that named it.
    """
    path = Path(place).expanduser()
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        raise MissingFile(f"{where}: {str(place)!r} is no file; allowed: a LoRA file, or a folder with {LORA_FILE}")
    return file


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file of either layout.

    Raises:
        MissingFile: It cannot be opened.
        UnreadableModel: It is no whole safetensors file, or holds something other than LoRA; the message says what.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except OSError as error:
        raise MissingFile(f"{path}: cannot be read ({error}); give a LoRA file") from error
    except SafetensorError as error:
        raise UnreadableModel(
            f"{path}: truncated or not a safetensors file ({error}); allowed: LoRA in safetensors; fetch it again"
        ) from error
    kohya = any(key.startswith("lora_") for key in tensors)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, role = _kohya_place(key, path) if kohya else _diffusers_place(key, path)
        parts.setdefault(name, {})[role] = tensor
    if not parts:
        raise UnreadableModel(f"{path}: holds no tensors; allowed: a LoRA file; choose another one")
    described = _description(metadata, path)
    adapters = {name: _adapter(name, given, kohya, described, path) for name, given in parts.items()}
    kept = {key: text for key, text in metadata.items() if not _follows(key)}
    return LoraFile("kohya" if kohya else "diffusers", adapters, kept, path.name)


def write_lora(path: Path, lora: LoraFile) -> None:
    """Write a LoRA file, all or nothing; equal adapters give equal files, byte for byte.

    Raises:
        VegaError: The file cannot be written, or its layout cannot say what it holds.
    """
    kohya = lora.layout == "kohya"
    tensors = _kohya_tensors(lora) if kohya else _diffusers_tensors(lora)
    metadata = {key: text for key, text in lora.metadata.items() if not _follows(key)}
    metadata |= _kohya_metadata(lora) if kohya else {DESCRIPTION_KEY: _describe(lora)}
    write_safetensors(path, tensors, metadata)


def _follows(key: str) -> bool:
    """Whether a metadata entry follows from the adapters (or is a hash over what may have changed)."""
    return key in (DESCRIPTION_KEY, "format", "ss_network_dim", "ss_network_alpha") or key.startswith("sshs_")


def _kohya_place(key: str, path: Path) -> tuple[str, str]:
    name, _, role = key.partition(".")
    if role not in _KOHYA_ROLES or not name.startswith("lora_"):
        _refuse(key, path)
    return name, _KOHYA_ROLES[role]


def _diffusers_place(key: str, path: Path) -> tuple[str, str]:
    """Return (component and neutral path, role) of a key in any of diffusers' spellings."""
    suffix = max((suffix for suffix in _DIFFUSERS_ROLES if key.endswith(suffix)), key=len, default=None)
    if suffix is None:
        _refuse(key, path)
    name = key.removesuffix(suffix).removeprefix("base_model.model.").replace(".processor.", ".")
    component, _, rest = name.partition(".")
    if component not in ADAPTABLE:  # files of a U-Net alone, as its `save_attn_procs` wrote them
        component, rest = "unet", name
    home, _, last = rest.rpartition(".")
    if component != "unet" and home.endswith("self_attn"):
        rest = f"{home}.{_OLD_TEXT_NAMES.get(last, last)}"
    elif last == "to_out":
        rest = f"{rest}.0"
    return f"{component}.{neutral_path(component, rest)}", _DIFFUSERS_ROLES[suffix]


def _refuse(key: str, path: Path) -> NoReturn:
    method = next((name for part, name in _OTHER_METHODS.items() if part in key), None)
    what = f"{key} is {method}" if method else f"{key} is no part of a LoRA"
    raise UnreadableModel(
        f"{path}: {what}; allowed: LoRA and DoRA of linear maps and convolutions; choose another file"
    )


def _adapter(name: str, given: dict[str, Tensor], kohya: bool, described: dict[str, Any], path: Path) -> Adapter:
    missing = [role for role in ("down", "up") if role not in given]
    if missing:
        wanted = "lora_down and lora_up" if kohya else "lora_A and lora_B"
        raise UnreadableModel(f"{path}: {name} is not whole; allowed: {wanted} for every map; fetch the file again")
    down, up, magnitude = given["down"], given["up"], given.get("magnitude")
    ranked = down.dim() == up.dim() and down.dim() in (2, 4) and up.shape[1] == down.shape[0] > 0
    if not ranked or math.prod(up.shape[2:]) != 1:
        shapes = f"{list(up.shape)} and {list(down.shape)}"
        raise UnreadableModel(f"{path}: {name} has factors {shapes}; allowed: [out, rank] and [rank, in]; fetch again")
    if magnitude is not None:
        # kohya's [1, in] measures columns; PEFT's [1, out, 1, 1] of a convolution measures rows.
        by_columns = kohya and magnitude.dim() > 1 and magnitude.shape[0] == 1 != up.shape[0]
        if by_columns or magnitude.numel() != up.shape[0]:
            raise UnreadableModel(
                f"{path}: {name} has a DoRA magnitude {list(magnitude.shape)}; allowed: one a row of the weight; "
                "choose another file"
            )
        magnitude = magnitude.flatten()
    alpha = _decimal(given["alpha"]) if "alpha" in given else _described_alpha(name, down.shape[0], described)
    return Adapter(down, up, alpha, magnitude)


def _decimal(alpha: Tensor) -> float:
    """Return the shortest decimal that has these bits, so that 0.1 stays 0.1 on its way through float32."""
    if alpha.dtype == torch.bfloat16:
        alpha = alpha.float()
    return float(str(alpha.reshape(-1)[0].numpy()[()]))


def _description(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        described = json.loads(metadata.get(DESCRIPTION_KEY, "{}"))
    except ValueError as error:
        raise UnreadableModel(f"{path}: its {DESCRIPTION_KEY} is no JSON ({error}); fetch the file again") from error
    return described if isinstance(described, dict) else {}


def _described_alpha(name: str, rank: int, described: Mapping[str, Any]) -> float:
    """Return an adapter's alpha by what diffusers noted; without a note, PEFT's convention: the rank."""
    component, _, path = name.partition(".")
    patterns = described.get(f"{component}.alpha_pattern") or {}
    alpha = described.get(f"{component}.lora_alpha", rank)
    for known in (published_path(component, path), path):  # PEFT writes the names that its version's networks have
        alpha = patterns.get(get_pattern_key(list(patterns), known), alpha)
    return float(alpha) * (math.sqrt(rank) if described.get(f"{component}.use_rslora") else 1.0)


def _kohya_tensors(lora: LoraFile) -> dict[str, Tensor]:
    tensors = {}
    for name, one in lora.adapters.items():
        alpha = torch.tensor(one.alpha)
        exact = _decimal(alpha) == one.alpha
        tensors[f"{name}.alpha"] = alpha if exact else torch.tensor(one.alpha, dtype=torch.float64)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = one.down, one.up
        if one.magnitude is not None:
            tensors[f"{name}.dora_scale"] = one.magnitude.reshape(-1, *[1] * (one.down.dim() - 1))
    return tensors


def _kohya_metadata(lora: LoraFile) -> dict[str, str]:
    """State rank and alpha as sd-scripts does: "Dynamic" where they differ."""
    ranks = {one.rank for one in lora.adapters.values()}
    alphas = {one.alpha for one in lora.adapters.values()}
    return {
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    }


def _diffusers_tensors(lora: LoraFile) -> dict[str, Tensor]:
    tensors = {}
    for name, one in lora.adapters.items():
        component, _, path = name.partition(".")
        home = f"{component}.{published_path(component, path)}"
        tensors[f"{home}.lora_A.weight"], tensors[f"{home}.lora_B.weight"] = one.down, one.up
        if one.magnitude is not None:
            shape = (1, -1, 1, 1) if one.down.dim() == 4 else (-1,)
            tensors[f"{home}.lora_magnitude_vector"] = one.magnitude.reshape(shape)
    return tensors


def _describe(lora: LoraFile) -> str:
    """Return PEFT's settings of every component, from which diffusers builds the same adapters.

    Targets have neutral paths: PEFT compares endings, so they are found with and without `text_model.`.

    Raises:
        VegaError: Some adapters of a component are DoRA and others are not, which PEFT cannot say.
    """
    described: dict[str, Any] = {}
    for component in ADAPTABLE:
        prefix = f"{component}."
        own = {name.removeprefix(prefix): one for name, one in lora.adapters.items() if name.startswith(prefix)}
        if not own:
            continue
        with_magnitude = {one.magnitude is not None for one in own.values()}
        if len(with_magnitude) > 1:
            raise VegaError(
                f"{lora.name}: some maps of {component} have DoRA magnitudes and others none; "
                "allowed in diffusers' layout: all or none; use --layout kohya"
            )
        (rank, _), *_ = Counter(one.rank for one in own.values()).most_common(1)
        (alpha, _), *_ = Counter(one.alpha for one in own.values()).most_common(1)
        settings = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": _number(alpha),
            "rank_pattern": {path: one.rank for path, one in own.items() if one.rank != rank},
            "alpha_pattern": {path: _number(one.alpha) for path, one in own.items() if one.alpha != alpha},
            "target_modules": sorted(own),
            "use_dora": with_magnitude.pop(),
        }
        described |= {f"{component}.{key}": value for key, value in settings.items()}
    return json.dumps(described, indent=2, sort_keys=True)


def _number(alpha: float) -> float | int:
    """PEFT declares whole alphas, and takes any."""
    return int(alpha) if alpha.is_integer() else alpha
