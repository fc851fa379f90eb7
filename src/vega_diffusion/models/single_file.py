"""A model as one file under the names of its first implementation: where every tensor has its place there.

SDXL was published by a code base (SGM) whose names ComfyUI, the web interfaces, sd-scripts and stable-diffusion.cpp
still use: `model.diffusion_model` for the U-Net, `first_stage_model` for the autoencoder, `conditioner.embedders` for
the text encoders. Names and the layout of a few tensors differ from a model folder, no number does. Files and folders
are read and written by `single_file_model`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vega_diffusion.models.layout import WEIGHT_STEMS, to_published_key
from vega_diffusion.models.lora_layouts import sgm_names

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
_THIRDS = ("q", "k", "v")


class Place(NamedTuple):
    """Where a tensor of ours stands in a single file.

    Attributes:
        key: Name there.
        layout: `same`; `turned`, a matrix transposed; `convolved`, a matrix as a 1x1 convolution; or which third it is
            of a joint query, key and value.
    """

    key: str
    layout: Literal["same", "turned", "convolved", "q", "k", "v"] = "same"


def places(component: str, keys: Collection[str], has_two: bool = True) -> dict[str, Place]:
    """Return for every tensor of a component its place in a single file.

    Args:
        component: A key of `WEIGHT_STEMS`.
        keys: Names of all its tensors, as our modules have them (diffusers, transformers).
        has_two: Whether the model has two text encoders.

    Raises:
        ValueError: A component or a tensor of a kind that such files do not have.
    """
    match component:
        case "unet":
            homes = sgm_names({key.rpartition(".")[0] for key in keys})
            return {key: Place(f"{UNET_PREFIX}{homes[path]}.{kind}") for key, path, kind in _split(keys)}
        case "vae":
            levels = 1 + max(int(found[1]) for key in keys if (found := re.match(r"decoder\.up_blocks\.(\d+)", key)))
            return {key: _vae_place(key, levels) for key in keys}
        case "text_encoder":
            prefix = FIRST_OF_TWO if has_two else ONLY_ONE
            return {key: Place(prefix + to_published_key(component, key)) for key in keys}
        case "text_encoder_2":
            return {key: _open_clip_place(key) for key in keys}
        case other:
            raise ValueError(f"single-file checkpoints hold no {other!r}; allowed: {', '.join(WEIGHT_STEMS)}")


def to_single_file(component: str, state: Mapping[str, Tensor], has_two: bool = True) -> dict[str, Tensor]:
    """Return a component's tensors as a single file holds them; arguments and errors as of `places`."""
    found: dict[str, Tensor] = {}
    joint: dict[str, dict[str, Tensor]] = {}
    for key, place in places(component, state, has_two).items():
        tensor = state[key]
        match place.layout:
            case "same":
                found[place.key] = tensor
            case "turned":
                found[place.key] = tensor.T
            case "convolved":
                found[place.key] = tensor[:, :, None, None]
            case third:
                joint.setdefault(place.key, {})[third] = tensor
    return found | {key: torch.cat([thirds[one] for one in _THIRDS]) for key, thirds in joint.items()}


def from_single_file(
    component: str, keys: Collection[str], read: Callable[[str], Tensor], has_two: bool = True
) -> dict[str, Tensor]:
    """Return a component's tensors under our names out of a single file.

    Args:
        component: A key of `WEIGHT_STEMS`.
        keys: Names of all its tensors.
        read: Returns a tensor of the file.
        has_two: Whether the model has two text encoders.
    """
    found = {}
    for key, place in places(component, keys, has_two).items():
        tensor = read(place.key)
        match place.layout:
            case "same":
                found[key] = tensor
            case "turned":
                found[key] = tensor.T
            case "convolved":
                found[key] = tensor.flatten(1)
            case third:
                found[key] = tensor.chunk(3)[_THIRDS.index(third)]
    return found


def _split(keys: Collection[str]) -> list[tuple[str, str, str]]:
    """Return every key with the layer and the parameter that it names."""
    return [(key, path, kind) for key in keys for path, _, kind in [key.rpartition(".")]]


def _vae_place(key: str, levels: int) -> Place:
    """Return the place of a tensor of an autoencoder: levels going up are counted from the other end."""
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", key)
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"(down|up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block.", name)
    name = re.sub(r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0", r"\1.\2.\3sample", name)
    head, attention, rest = name.partition(".mid.attn_1.")
    if not attention:
        return Place(VAE_PREFIX + name)
    part, _, kind = rest.rpartition(".")
    is_matrix = kind == "weight" and part != "group_norm"
    return Place(f"{VAE_PREFIX}{head}{attention}{_VAE_ATTENTION[part]}.{kind}", "convolved" if is_matrix else "same")


def _open_clip_place(key: str) -> Place:
    """Return the place of a tensor of SDXL's second text encoder."""
    if key in _OPEN_CLIP_SINGLE:
        return Place(SECOND_OF_TWO + _OPEN_CLIP_SINGLE[key])
    if key == "text_projection.weight":
        return Place(f"{SECOND_OF_TWO}text_projection", "turned")
    if match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
        layer, part, kind = match.groups()
        home = f"{SECOND_OF_TWO}transformer.resblocks.{layer}"
        if part in _OPEN_CLIP_LAYER:
            return Place(f"{home}.{_OPEN_CLIP_LAYER[part]}.{kind}")
        for third in _THIRDS:
            if part == f"self_attn.{third}_proj":
                return Place(f"{home}.attn.in_proj_{kind}", third)
    raise ValueError(f"text_encoder_2: {key} has no place in a single-file checkpoint")
