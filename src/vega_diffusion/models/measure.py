"""Sizes and work of a model, measured on the meta device: parameters, blocks, multiply-accumulates.

No weights are read and no memory is taken, so the full-size family can be measured on any machine. Time and memory of
real runs are the business of `benchmarks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec, UNetSpec


@dataclass(frozen=True)
class BlockSize:
    """One part of a U-Net: `name` as in the state dict, parameters, and how many of each layer it holds.

    `resnets` counts `ResnetBlock2D`; `transformer_depths` lists, for each attention layer in order, the number of
    `BasicTransformerBlock`s.
    """

    name: str
    kind: str
    parameters: int
    resnets: int
    transformer_depths: tuple[int, ...]


@dataclass(frozen=True)
class ModelSize:
    """Everything that `vega inspect` states about a model; parameters are counts, work is in units of 1e9 MACs.

    `gmacs_512` and `gmacs_1024` are one U-Net forward for one picture of that many pixels a side, 77 text tokens;
    `gmacs_default` for a picture of the model's default size.
    """

    unet_parameters: int
    transformer_blocks: int
    resnets: int
    attention_layers: int
    gmacs_512: float
    gmacs_1024: float
    gmacs_default: float
    blocks: tuple[BlockSize, ...]
    text_encoder_parameters: int
    text_encoder_2_parameters: int | None
    vae_parameters: int
    vae_decoder_parameters: int
    total_parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, blocks by name."""
        plain = asdict(self)
        plain["blocks"] = {block.pop("name"): block for block in plain["blocks"]}
        return plain


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_modules(module: nn.Module, class_name: str) -> int:
    """Return how many submodules (the module itself included) are of the class of that name."""
    return sum(type(part).__name__ == class_name for part in module.modules())


def count_macs(module: nn.Module, *inputs: Any, **named_inputs: Any) -> int:
    """Count the multiply-accumulates of one forward: convolutions, linear layers and attention products.

    Norms, activations and additions are left out, as in every published figure for these models; a MAC is half of what
    torch calls a FLOP.

    Args:
        module: Any network, on the meta device for speed.
        inputs: What its `forward` takes, on the same device.
        named_inputs: Keyword arguments of `forward`.

    Returns:
        The count for the whole batch.
    """
    return macs_by_module(module, *inputs, **named_inputs)[""]


def macs_by_module(module: nn.Module, *inputs: Any, **named_inputs: Any) -> dict[str, int]:
    """Count as `count_macs` does; return the count of every module that does work, by path, "" being the whole."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs, **named_inputs)
    root = type(module).__name__
    found = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    inner = {name.removeprefix(f"{root}."): macs for name, macs in found.items() if name.startswith(f"{root}.")}
    return inner | {"": counter.get_total_flops() // 2}


def unet_macs(spec: UNetSpec, width_px: int, height_px: int, downscale: int = 8, tokens: int = 77) -> int:
    """Count the MACs of one U-Net forward for one picture, without guidance (which doubles it).

    Args:
        spec: The architecture.
        width_px: Width of the picture in pixels, a multiple of `downscale`.
        height_px: Height of the picture in pixels, a multiple of `downscale`.
        downscale: Pixels to one latent cell along a side.
        tokens: Length of the text condition.

    Returns:
        Multiply-accumulates.
    """
    return _unet_macs(spec.to_json(), height_px // downscale, width_px // downscale, tokens)


# Remembered, since a forward of SDXL takes seconds even on the meta device; by text, since specs hold no hash.
@lru_cache(maxsize=64)
def _unet_macs(spec_json: str, height: int, width: int, tokens: int) -> int:
    spec = UNetSpec.from_json(spec_json)
    with torch.device("meta"):
        unet, inputs = build_unet(spec), example_inputs(spec, height, width, tokens)
    # Blocks of one attention layer do equal work, so the first stands for all: SDXL has 70 in 11 layers.
    left_out = {}
    for path, part in unet.named_modules():
        if type(part).__name__ == "Transformer2DModel":
            blocks: Any = part.transformer_blocks
            left_out[f"{path}.transformer_blocks.0"] = max(len(blocks) - 1, 0)
            part.transformer_blocks = blocks[:1]
    macs = macs_by_module(unet, **inputs)
    return macs[""] + sum(count * macs.get(path, 0) for path, count in left_out.items())


def example_inputs(spec: UNetSpec, height: int, width: int, tokens: int = 77) -> dict[str, Any]:
    """Return arguments of a U-Net's forward for one picture, without values, on the current device.

    Args:
        spec: The architecture.
        height: Of the latents.
        width: Of the latents.
        tokens: Length of the text condition.
    """
    added = None
    if spec.addition_embed_type == "text_time":
        pooled_size = (spec.projection_class_embeddings_input_dim or 0) - 6 * (spec.addition_time_embed_dim or 0)
        added = {"text_embeds": torch.zeros(1, pooled_size), "time_ids": torch.zeros(1, 6)}
    return {
        "sample": torch.zeros(1, spec.in_channels, height, width),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, tokens, spec.cross_attention_dim),
        "added_cond_kwargs": added,
    }


def unet_parts(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a diffusers U-Net in the order of the forward pass, lists of blocks one by one.

    Together the parts hold every parameter of the U-Net exactly once.
    """
    order = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block", "up_blocks")
    children = dict(unet.named_children())
    for name in (*order, *(name for name in children if name not in order)):
        child = children.get(name)
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{index}", block) for index, block in enumerate(child))
        elif child is not None:
            yield name, child


def _block_size(name: str, block: nn.Module) -> BlockSize:
    attentions = [part for part in block.modules() if type(part).__name__ == "Transformer2DModel"]
    return BlockSize(
        name=name,
        kind=type(block).__name__,
        parameters=count_parameters(block),
        resnets=count_modules(block, "ResnetBlock2D"),
        transformer_depths=tuple(count_modules(part, "BasicTransformerBlock") for part in attentions),
    )


def measure_blocks(spec: UNetSpec) -> tuple[BlockSize, ...]:
    """Return the sizes of the U-Net's parts that hold parameters, in the order of the forward pass."""
    with torch.device("meta"):
        unet = build_unet(spec)
    sizes = (_block_size(name, part) for name, part in unet_parts(unet))
    return tuple(size for size in sizes if size.parameters)


def measure_model(spec: ModelSpec) -> ModelSize:
    """Measure a model of this architecture on the meta device (a few seconds, no weights)."""
    blocks = measure_blocks(spec.unet)
    with torch.device("meta"):
        autoencoder = build_autoencoder(spec.autoencoder)
        first = count_parameters(build_text_encoder(spec.text_encoder))
        second = None
        if spec.text_encoder_2 is not None:
            second = count_parameters(build_text_encoder(spec.text_encoder_2))
    unet = sum(block.parameters for block in blocks)
    vae = count_parameters(autoencoder)
    default = (spec.generation.width, spec.generation.height)
    gmacs = {
        size: unet_macs(spec.unet, *size, downscale=spec.autoencoder.downscale) / 1e9
        for size in ((512, 512), (1024, 1024), default)
    }
    return ModelSize(
        unet_parameters=unet,
        transformer_blocks=sum(sum(block.transformer_depths) for block in blocks),
        resnets=sum(block.resnets for block in blocks),
        attention_layers=sum(len(block.transformer_depths) for block in blocks),
        gmacs_512=gmacs[512, 512],
        gmacs_1024=gmacs[1024, 1024],
        gmacs_default=gmacs[default],
        blocks=blocks,
        text_encoder_parameters=first,
        text_encoder_2_parameters=second,
        vae_parameters=vae,
        vae_decoder_parameters=sum(
            parameter.numel()
            for name, parameter in autoencoder.named_parameters()
            if name.startswith(("decoder.", "post_quant_conv."))
        ),
        total_parameters=unet + first + (second or 0) + vae,
    )
