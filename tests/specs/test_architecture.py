"""Specs and presets of architectures: round trips, depths layer by layer, and what is refused."""

from __future__ import annotations

import json

import pytest

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.architecture import GenerationDefaults, ModelSpec, UNetSpec
from vega_diffusion.specs.presets import PRESETS, SSD_1B, VEGA, VEGA_MINI, preset


def changed(spec: UNetSpec, **values: object) -> UNetSpec:
    """Build anew from plain data, so that validators run (model_copy skips them)."""
    return UNetSpec.from_dict(spec.model_dump(mode="json") | values)


def test_the_known_presets_are_all_there() -> None:
    full = {"sdxl", "ssd-1b", "vega", "koala-1b", "koala-700m", "sd-1.5"}
    assert set(PRESETS) == full | {"mini-sdxl", "ssd-mini", "vega-mini"}
    assert all(name == spec.name for name, spec in PRESETS.items())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json_and_its_own_validators(name: str) -> None:
    assert ModelSpec.from_json(preset(name).to_json()) == preset(name)


@pytest.mark.parametrize(
    ("name", "down", "mid", "up"),
    [
        ("sdxl", ((), (2, 2), (10, 10)), 10, ((10, 10, 10), (2, 2, 2), ())),
        ("ssd-1b", ((), (2, 2), (4, 4)), 0, ((4, 4, 10), (2, 1, 1), ())),
        ("vega", ((), (1, 1), (2, 2)), 0, ((2, 2, 2), (1, 1, 1), ())),
        ("koala-1b", ((), (2,), (6,)), 6, ((6, 6), (2, 2), ())),
        ("koala-700m", ((), (2,), (5,)), 0, ((5, 5), (2, 2), ())),
    ],
)
def test_depths_of_every_attention_layer(name: str, down: object, mid: int, up: object) -> None:
    unet = preset(name).unet
    assert (unet.down_depths, unet.mid_depth, unet.up_depths) == (down, mid, up)


@pytest.mark.parametrize(
    "spelling",
    [
        {"transformer_layers_per_block": [0, 1, 2]},
        {"transformer_layers_per_block": [1, [1, 1], [2, 2]], "reverse_transformer_layers_per_block": [2, 1, 1]},
        {"reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 0]},
        {"layers_per_block": [2, 2, 2]},
        {"sample_size": 64},
    ],
)
def test_other_spellings_of_vega_are_the_same_network(spelling: dict[str, object]) -> None:
    other = changed(VEGA.unet, **spelling)
    assert other != VEGA.unet
    assert other.same_network(VEGA.unet)
    assert VEGA.unet.same_network(other)


@pytest.mark.parametrize(
    "change",
    [
        {"transformer_layers_per_block": [1, 1, 3]},
        {"reverse_transformer_layers_per_block": [[2, 2, 1], 1, 1]},
        {"mid_block_type": None},
        {"layers_per_block": 1},
        {"norm_eps": 1e-6},
        {"attention_head_dim": [5, 10, 10]},
    ],
)
def test_another_layer_count_is_another_network(change: dict[str, object]) -> None:
    assert not changed(VEGA.unet, **change).same_network(VEGA.unet)


def test_no_two_full_size_presets_share_a_network() -> None:
    networks = [spec.unet for spec in PRESETS.values()]
    assert sum(one.same_network(other) for one in networks for other in networks) == len(networks)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"attention_head_dim": [5, 10]}, "unet.attention_head_dim"),
        ({"down_block_types": ["DownBlock2D"]}, "unet.down_block_types"),
        ({"norm_num_groups": 48}, "unet.norm_num_groups"),
        ({"transformer_layers_per_block": [1, [1, 2], 2]}, "unet.reverse_transformer_layers_per_block"),
        ({"projection_class_embeddings_input_dim": None}, "unet.projection_class_embeddings_input_dim"),
        ({"mid_block_type": "Nonsense"}, "mid_block_type"),
        ({"num_blocks": 3}, "num_blocks"),
        ({"in_channels": 0}, "in_channels"),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused_by_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(VegaError) as caught:
        changed(VEGA.unet, **change)
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "change", "field"),
    [
        ("unet", {"cross_attention_dim": 1024}, "unet.cross_attention_dim"),
        ("unet", {"projection_class_embeddings_input_dim": 2817}, "unet.projection_class_embeddings_input_dim"),
        ("text_encoder", {"num_attention_heads": 7}, "text_encoder.num_attention_heads"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_field(part: str, change: dict[str, object], field: str) -> None:
    data = json.loads(VEGA.to_json())
    data[part] |= change
    with pytest.raises(InvalidValue) as caught:
        ModelSpec.from_dict(data)
    assert caught.value.field == field


def test_vega_is_used_as_its_card_asks() -> None:
    assert VEGA.generation.guidance_scale == 9.0
    assert (
        VEGA.generation.negative_prompt
        == "(worst quality, low quality, illustration, 3d, 2d, painting, cartoons, sketch)"
    )
    assert (VEGA.generation.width, VEGA.generation.height) == (1024, 1024)


def test_the_mini_family_has_the_topology_of_the_full_one() -> None:
    for mini, full in (("vega-mini", "vega"), ("mini-sdxl", "sdxl")):
        small, large = preset(mini).unet, preset(full).unet
        assert small.down_depths == large.down_depths
        assert small.up_depths == large.up_depths
        assert (small.mid_depth, small.mid_block_type) == (large.mid_depth, large.mid_block_type)
        assert small.layers_per_block == large.layers_per_block


def test_the_mini_family_shares_its_text_encoders_and_autoencoder() -> None:
    mini, teacher = VEGA_MINI, preset("mini-sdxl")
    assert mini.text_encoder == teacher.text_encoder
    assert mini.text_encoder_2 == teacher.text_encoder_2
    assert mini.autoencoder == teacher.autoencoder
    assert mini.autoencoder.downscale == 8
    assert mini.unet.sample_size * 8 == mini.generation.width == 128


def test_only_models_with_two_encoders_are_sdxl_shaped() -> None:
    assert [name for name, spec in PRESETS.items() if not spec.is_sdxl_shaped] == ["sd-1.5"]


def test_generation_defaults_refuse_nonsense() -> None:
    for change in ({"num_steps": 0}, {"guidance_scale": -1}, {"width": -8}):
        with pytest.raises(InvalidValue) as caught:
            GenerationDefaults.from_dict(change)
        assert next(iter(change)) in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidValue, match=r"vega-minii.*vega-mini"):
        preset("vega-minii")


def test_nested_depths_of_ssd_1b_are_kept_through_plain_data() -> None:
    config = SSD_1B.unet.to_config()
    assert config["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 1, 1], 1]
    assert UNetSpec.from_dict(config) == SSD_1B.unet
