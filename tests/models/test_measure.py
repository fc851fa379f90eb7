"""Sizes and work of the known architectures, against the figures that others published and against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vega_diffusion.models.measure import (
    ModelSize,
    count_macs,
    count_modules,
    count_parameters,
    example_inputs,
    measure_blocks,
    measure_model,
    unet_macs,
    unet_parts,
)
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.presets import PRESETS, preset

FULL = ("sdxl", "ssd-1b", "vega", "koala-1b", "koala-700m")


@pytest.fixture(scope="module")
def sizes() -> dict[str, ModelSize]:
    return {name: measure_model(preset(name)) for name in FULL}


# Parameters of the published checkpoints; KOALA's and Segmind's cards state the same in millions.
@pytest.mark.parametrize(
    ("name", "parameters", "transformer_blocks", "attention_layers", "resnets"),
    [
        ("sdxl", 2_567_463_684, 70, 11, 17),
        ("ssd-1b", 1_331_334_404, 34, 10, 16),
        ("vega", 745_225_604, 15, 10, 16),
        ("koala-1b", 1_161_184_324, 30, 7, 11),
        ("koala-700m", 782_822_724, 21, 6, 9),
        ("sd-1.5", 859_520_964, 16, 16, 22),
    ],
)
def test_unets_have_exactly_the_published_size(
    name: str, parameters: int, transformer_blocks: int, attention_layers: int, resnets: int
) -> None:
    blocks = measure_blocks(preset(name).unet)
    assert sum(block.parameters for block in blocks) == parameters
    assert sum(sum(block.transformer_depths) for block in blocks) == transformer_blocks
    assert sum(len(block.transformer_depths) for block in blocks) == attention_layers
    assert sum(block.resnets for block in blocks) == resnets


def test_a_model_is_the_sum_of_its_blocks(sizes: dict[str, ModelSize]) -> None:
    vega = sizes["vega"]
    counted = (vega.unet_parameters, vega.transformer_blocks, vega.attention_layers, vega.resnets)
    assert counted == (745_225_604, 15, 10, 16)
    assert vega.gmacs_default == vega.gmacs_1024
    assert sum(block["parameters"] for block in vega.to_dict()["blocks"].values()) == vega.unet_parameters


@pytest.mark.parametrize(
    ("name", "at_512", "at_1024"),
    [
        ("sdxl", 794.4, 3380.6),
        ("ssd-1b", 489.8, 2103.9),
        ("vega", 331.4, 1411.2),
        ("koala-1b", 400.9, 1715.9),
        ("koala-700m", 311.4, 1350.8),
    ],
)
def test_work_of_one_forward(sizes: dict[str, ModelSize], name: str, at_512: float, at_1024: float) -> None:
    assert (round(sizes[name].gmacs_512, 1), round(sizes[name].gmacs_1024, 1)) == (at_512, at_1024)


def test_vega_by_parts_as_segmind_states_it(sizes: dict[str, ModelSize]) -> None:
    """The deep dive of Segmind's blog: down 247 M, mid 31 M, up 460 M."""
    blocks = sizes["vega"].blocks
    parts = {
        part: sum(block.parameters for block in blocks if block.name.startswith(part)) for part in ("down", "mid", "up")
    }
    assert parts == {"down": 246_838_080, "mid": 31_138_560, "up": 459_928_960}


def test_text_encoders_and_autoencoder_of_sdxl(sizes: dict[str, ModelSize]) -> None:
    for name in ("sdxl", "vega", "koala-700m"):
        size = sizes[name]
        assert size.text_encoder_parameters == 123_060_480  # CLIP-L
        assert size.text_encoder_2_parameters == 694_659_840  # OpenCLIP bigG
        assert size.vae_parameters == 83_653_863
        assert size.vae_decoder_parameters == 49_490_199
    assert sizes["vega"].total_parameters == 1_646_599_787


@pytest.mark.parametrize("name", PRESETS)
def test_blocks_add_up_to_the_unet(name: str) -> None:
    spec = preset(name).unet
    with torch.device("meta"):
        unet = build_unet(spec)
    assert sum(count_parameters(part) for _, part in unet_parts(unet)) == count_parameters(unet)
    blocks = measure_blocks(spec)
    assert sum(block.parameters for block in blocks) == count_parameters(unet)
    by_name = {block.name: block.transformer_depths for block in blocks}
    levels = range(spec.num_levels)
    assert tuple(by_name[f"down_blocks.{level}"] for level in levels) == spec.down_depths
    assert tuple(by_name[f"up_blocks.{level}"] for level in levels) == spec.up_depths
    assert sum(by_name.get("mid_block", ())) == spec.mid_depth


@pytest.mark.parametrize(
    "change",
    [
        {"layers_per_block": [1, 2, 1], "transformer_layers_per_block": [1, 3, 2]},
        {"transformer_layers_per_block": 2, "layers_per_block": 3},
        {
            "transformer_layers_per_block": [1, [1, 2], [2, 1]],
            "reverse_transformer_layers_per_block": [[1, 2, 3], [3, 1, 1], 1],
            "mid_block_type": None,
        },
    ],
)
def test_stated_depths_are_the_ones_that_diffusers_builds(change: dict[str, object]) -> None:
    spec = UNetSpec.from_dict(preset("mini-sdxl").unet.model_dump(mode="json") | change)
    by_name = {block.name: block for block in measure_blocks(spec)}
    for level in range(3):
        assert by_name[f"down_blocks.{level}"].transformer_depths == spec.down_depths[level]
        assert by_name[f"up_blocks.{level}"].transformer_depths == spec.up_depths[level]
    mid = by_name.get("mid_block")
    assert sum(mid.transformer_depths if mid else ()) == spec.mid_depth


def test_macs_in_closed_form() -> None:
    linear, convolution = nn.Linear(7, 5), nn.Conv2d(3, 4, 3, padding=1)
    assert count_macs(linear, torch.zeros(2, 7)) == 2 * 7 * 5
    assert count_macs(convolution, torch.zeros(2, 3, 8, 6)) == 2 * 4 * 3 * 9 * 8 * 6


@pytest.mark.parametrize("depths", [[1, [1, 3], 2], [0, 2, 5]])
def test_one_block_stands_for_all_of_its_layer(depths: list[object]) -> None:
    changes = {"transformer_layers_per_block": depths, "reverse_transformer_layers_per_block": [2, 3, 1]}
    spec = UNetSpec.from_dict(preset("mini-sdxl").unet.model_dump(mode="json") | changes)
    with torch.device("meta"):
        unet, inputs = build_unet(spec), example_inputs(spec, 16, 24)
    assert unet_macs(spec, 192, 128) == count_macs(unet, **inputs)


def test_attention_costs_its_two_products() -> None:
    """Doubling the text length adds, in every cross-attention, two projections and two products for each token."""
    spec = preset("vega-mini").unet
    short, long = (unet_macs(spec, 128, 128, tokens=tokens) for tokens in (77, 154))
    extra = 0
    sides = {0: 16, 1: 8, 2: 4}
    depth = {level: sum(spec.down_depths[level]) + sum(spec.up_depths[2 - level]) for level in range(3)}
    for level, width in enumerate(spec.block_out_channels):
        projections = 2 * spec.cross_attention_dim * width * 77
        products = 2 * sides[level] ** 2 * 77 * width
        extra += depth[level] * (projections + products)
    assert long - short == extra


def test_modules_are_counted_with_the_root() -> None:
    assert count_modules(nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))), "Linear") == 2
    assert count_modules(nn.Linear(1, 1), "Linear") == 1
