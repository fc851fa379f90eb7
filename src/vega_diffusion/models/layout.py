"""The published layout of an SDXL folder: which components it has, which files, which keys. Names only, no tensors.

The layout is the one of the SDXL folders on the Hub, which every reader understands: `text_encoder` keys begin with
`text_model.` (transformers 5 drops the prefix when it saves), tokenizers are `vocab.json` and `merges.txt`. Beside the
stock files stands our `vega.json`, which readers that do not know it ignore.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vega_diffusion.errors import MissingFile, UnreadableModel

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp16"]
TextEncoderName = Literal["text_encoder", "text_encoder_2"]
TokenizerName = Literal["tokenizer", "tokenizer_2"]
WeightName = Literal["unet", "vae", "text_encoder", "text_encoder_2", "vae_tiny"]

VEGA_JSON = "vega.json"
VEGA_JSON_SCHEMA = 1
MODEL_INDEX = "model_index.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt")
TOKENIZERS: tuple[TokenizerName, ...] = ("tokenizer", "tokenizer_2")

# component of a model folder -> stem of its weight file
WEIGHT_STEMS: dict[str, str] = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}

# A tiny autoencoder that a model folder may hold beside them; diffusers' pipelines do not ask for it.
VAE_TINY = "vae_tiny"
_OTHER_STEMS = {VAE_TINY: "diffusion_pytorch_model"}

PIPELINE_CLASS = "StableDiffusionXLPipeline"
PIPELINE_COMPONENTS: dict[str, tuple[str, str]] = {
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one component at one precision: one file, or the shards that an index lists."""

    component: str
    precision: Precision
    paths: tuple[Path, ...]


def weight_filename(component: str, precision: Precision, suffix: str = ".safetensors") -> str:
    """Return the published name of a weight file: `unet` at fp16 is `diffusion_pytorch_model.fp16.safetensors`."""
    variant = ".fp16" if precision == "fp16" else ""
    stem = (WEIGHT_STEMS | _OTHER_STEMS).get(component, "model")  # the checker is no part of a model folder
    return f"{stem}{variant}{suffix}"


def find_weights(folder: Path, component: str, dtype: torch.dtype | None = None) -> WeightFiles:
    """Choose the weight files of a component: fp32 files for fp32, fp16 files for the half types, else what is there.

    Args:
        folder: A model folder.
        component: A key of `WEIGHT_STEMS`.
        dtype: What the weights will be cast to; None counts as fp32.

    Raises:
        UnreadableModel: The component has no safetensors file, or an index lists a shard that is not there.
    """
    return weights_in(folder / component, component, dtype)


def weights_in(home: Path, component: str, dtype: torch.dtype | None = None) -> WeightFiles:
    """Choose as `find_weights` does, in the component's own folder, whatever that is called."""
    # By name: whoever only looks for files need not wait for torch.
    half = str(dtype) in ("torch.float16", "torch.bfloat16")
    order: tuple[Precision, Precision] = ("fp16", "fp32") if half else ("fp32", "fp16")
    for precision in order:
        single = home / weight_filename(component, precision)
        if single.is_file():
            return WeightFiles(component, precision, (single,))
        variant = ".fp16" if precision == "fp16" else ""
        stem = weight_filename(component, "fp32", "")
        index = home / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return WeightFiles(component, precision, _shards(index))
    wanted = " or ".join(weight_filename(component, precision) for precision in order)
    raise UnreadableModel(
        f"{home}: component {component} has no weights; allowed: {wanted}; complete the folder or fetch it again"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UnreadableModel(f"{index}: lists no weight_map; allowed: a safetensors index; fetch the file again")
    paths = tuple(index.parent / name for name in sorted(set(table.values())))
    for path in paths:
        if not path.is_file():
            raise UnreadableModel(f"{path}: shard is missing; allowed: every file of {index.name}; fetch it again")
    return paths


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; whatever is wrong becomes one line.

    Raises:
        MissingFile: There is no such file, or it cannot be read.
        UnreadableModel: It does not hold a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingFile(
            f"{path}: cannot be read ({error.strerror}); complete the folder or fetch it again"
        ) from error
    except ValueError as error:
        raise UnreadableModel(f"{path}: not valid JSON ({error}); mend the file or fetch it again") from error
    if not isinstance(data, dict):
        raise UnreadableModel(f"{path}: holds no JSON object; mend the file or fetch it again")
    return data


def check_folder(folder: Path) -> None:
    """Check that a folder holds every component of an SDXL-shaped model (configs, tokenizer files, weights).

    Raises:
        MissingFile: The folder or its `model_index.json` is not there.
        UnreadableModel: It is another kind of model, or a component is missing; the message names it.
    """
    if not folder.is_dir():
        raise MissingFile(f"model: folder {str(folder)!r} does not exist; give a model folder or a known name")
    if not (folder / MODEL_INDEX).is_file():
        raise MissingFile(f"model: folder {str(folder)!r} holds no {MODEL_INDEX}; give a diffusers model folder")
    index = read_json(folder / MODEL_INDEX)
    kind = str(index.get("_class_name", ""))
    # Image-to-image and inpainting variants, LCM and community pipelines share the components: judge by those.
    for component in PIPELINE_COMPONENTS:
        entry = index.get(component)
        if not entry or entry == [None, None]:
            raise UnreadableModel(
                f"{folder / MODEL_INDEX}: a {kind or 'nameless'} without {component} is not SDXL-shaped; "
                f"allowed: {', '.join(PIPELINE_COMPONENTS)}; choose an SDXL-shaped model"
            )
    for component in PIPELINE_COMPONENTS:
        for name in _needed_files(component):
            path = folder / component / name
            if not path.is_file():
                raise UnreadableModel(
                    f"{folder}: component {component} is missing ({path.relative_to(folder)} is not there); "
                    "allowed: all seven components; complete the folder or fetch it again"
                )
    for component in WEIGHT_STEMS:
        find_weights(folder, component)


def _needed_files(component: str) -> tuple[str, ...]:
    if component == "scheduler":
        return ("scheduler_config.json",)
    if component in TOKENIZERS:
        return TOKENIZER_FILES
    return ("config.json",)


def to_published_key(component: str, key: str) -> str:
    """Translate a key of our modules (transformers 5) to the published layout."""
    if component == "text_encoder" and not key.startswith("text_model."):
        return f"text_model.{key}"
    return key


# Names of attention layers before diffusers 0.18, still found in autoencoders of Stable Diffusion 1.
_OLD_VAE_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_published_key(component: str, key: str) -> str | None:
    """Translate a key of a file to our modules; None for entries that hold no weight (old `position_ids`)."""
    if key.endswith("embeddings.position_ids"):
        return None
    if component == "text_encoder":
        return key.removeprefix("text_model.")
    if component == "vae" and ".attentions." in key:
        head, name, kind = key.rsplit(".", 2)
        return f"{head}.{_OLD_VAE_NAMES.get(name, name)}.{kind}"
    return key
