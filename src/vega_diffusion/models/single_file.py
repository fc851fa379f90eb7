"""A whole model as one file under the names of its first implementation, which most other programs load.

SDXL was published by a code base (SGM) whose names ComfyUI, the web interfaces, sd-scripts and stable-diffusion.cpp
still use: `model.diffusion_model` for the U-Net, `first_stage_model` for the autoencoder, `conditioner.embedders` for
the text encoders. Nothing but names and the layout of a few tensors changes, so diffusers' `from_single_file` leads
back to the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.checkpoint import load_component
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.export import DTYPES
from vega_diffusion.models.layout import WEIGHT_STEMS, Precision, find_weights, to_published_key
from vega_diffusion.models.lora_layouts import sgm_names
from vega_diffusion.models.safetensors_file import write_safetensors

if TYPE_CHECKING:
    from vega_diffusion.specs.architecture import ModelSpec

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
# Of the two encoders of SDXL, and of the one that Stable Diffusion 1 has.
FIRST_OF_TWO = "conditioner.embedders.0.transformer."
SECOND_OF_TWO = "conditioner.embedders.1.model."
ONLY_ONE = "cond_stage_model.transformer."

_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# What OpenCLIP, from which SDXL's second text encoder comes, calls parts of a layer, and single tensors.
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_SINGLE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def write_single_file(folder: Path, output: Path, precision: Precision | None = None) -> tuple[ModelSpec, int]:
    """Write a model folder as one file; it appears complete or not at all.

    The whole model is in memory once. Tokenizers are not in such files: programs bring CLIP's own along.

    Args:
        folder: A model folder (`find.resolve_model`).
        output: The new file, replaced if it is there.
        precision: Of the numbers; None is that of the folder's U-Net.

    Returns:
        The model's spec, which the file's metadata hold as well, and the number of tensors.

    Raises:
        InvalidValue: The model predicts what such files cannot say.
        VegaError: The model cannot be read, or the file cannot be written.
    """
    spec = load_spec(folder)
    dtype = DTYPES[precision or find_weights(folder, "unet").precision]
    tensors = _marks(spec)
    for component in WEIGHT_STEMS:
        state = load_component(folder, spec, component, dtype).state_dict()
        tensors |= single_file_tensors(component, state, spec.text_encoder_2 is not None)
    write_safetensors(output, tensors, {"modelspec.title": spec.name, "vega_spec": spec.to_json()})
    return spec, len(tensors)


def single_file_tensors(component: str, state: Mapping[str, Tensor], has_two: bool = True) -> dict[str, Tensor]:
    """Return a component's tensors as single-file checkpoints hold them.

    Args:
        component: A key of `WEIGHT_STEMS`.
        state: Its state under the names of our modules (diffusers, transformers).
        has_two: Whether the model has two text encoders.

    Raises:
        ValueError: A tensor of a kind that such files do not have.
    """
    match component:
        case "unet":
            return _unet(state)
        case "vae":
            levels = 1 + max(int(found[1]) for key in state if (found := re.match(r"decoder\.up_blocks\.(\d+)", key)))
            return dict(_vae_tensor(key, tensor, levels) for key, tensor in state.items())
        case "text_encoder":
            prefix = FIRST_OF_TWO if has_two else ONLY_ONE
            return {prefix + to_published_key(component, key): tensor for key, tensor in state.items()}
        case "text_encoder_2":
            return _open_clip(state)
        case other:
            raise ValueError(f"single-file checkpoints hold no {other!r}; allowed: {', '.join(WEIGHT_STEMS)}")


def _marks(spec: ModelSpec) -> dict[str, Tensor]:
    """Return the empty tensors by which ComfyUI and others know what a model predicts."""
    match spec.schedule.prediction_type:
        case "epsilon":
            return {}
        case "v_prediction":
            names = ["v_pred", *(["ztsnr"] if spec.schedule.rescale_betas_zero_snr else [])]
            return {name: torch.tensor([]) for name in names}
        case other:
            raise InvalidValue(
                "prediction_type", other, "epsilon or v_prediction in a single file", "keep the model folder"
            )


def _unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    homes = sgm_names({key.rpartition(".")[0] for key in state})
    found = {}
    for key, tensor in state.items():
        path, _, kind = key.rpartition(".")
        found[f"{UNET_PREFIX}{homes[path]}.{kind}"] = tensor
    return found


def _vae_tensor(key: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    """Return one tensor of an autoencoder: levels going up are counted from the other end, attention is convolved."""
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", key)
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"(down|up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block.", name)
    name = re.sub(r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0", r"\1.\2.\3sample", name)
    if ".mid.attn_1." in name:
        head, _, rest = name.partition("attn_1.")
        part, _, kind = rest.rpartition(".")
        name = f"{head}attn_1.{_VAE_ATTENTION[part]}.{kind}"
        if tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
    return VAE_PREFIX + name, tensor


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SDXL's second text encoder: query, key and value of a layer are one tensor, the projection is turned."""
    found = {}
    for key, tensor in state.items():
        if key in _OPEN_CLIP_SINGLE:
            found[_OPEN_CLIP_SINGLE[key]] = tensor
        elif key == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            layer, part, kind = match.groups()
            home = f"transformer.resblocks.{layer}"
            if part in _OPEN_CLIP_LAYER:
                found[f"{home}.{_OPEN_CLIP_LAYER[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                others = (state[key.replace("q_proj", f"{one}_proj")] for one in "kv")
                found[f"{home}.attn.in_proj_{kind}"] = torch.cat([tensor, *others])
        else:
            raise ValueError(f"text_encoder_2: {key} has no place in a single-file checkpoint")
    return {SECOND_OF_TWO + key: tensor for key, tensor in found.items()}
