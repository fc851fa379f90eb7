"""Layer maps: what the blocks are, what a map says of a student, files, composition, and errors that name the block."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.known_maps import KNOWN_MAPS, find_map, read_map
from vega_diffusion.specs.layer_map import LayerMap, block_table, keep_evenly, kind_of, match_layers
from vega_diffusion.specs.presets import KOALA_700M, PRESETS, SDXL, SSD_1B, VEGA, VEGA_MINI

CLASSES = {
    "ResnetBlock2D": "resnet",
    "Transformer2DModel": "attention",
    "BasicTransformerBlock": "transformer_block",
}


def teacher_of(name: str) -> UNetSpec:
    return SSD_1B.unet if name == "ssd-1b-to-vega" else SDXL.unet


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_lists_exactly_the_blocks_of_the_network(name):
    table = block_table(PRESETS[name].unet)
    with torch.device("meta"):
        unet = build_unet(PRESETS[name].unet)
    real = {path: module for path, module in unet.named_modules() if type(module).__name__ in CLASSES}
    assert table.keys() == real.keys()
    for path, module in real.items():
        block = table[path]
        assert block.kind == CLASSES[type(module).__name__] == kind_of(path)
        if block.kind == "resnet":
            assert (module.in_channels, module.out_channels) == block[1:3]
        elif block.kind == "attention":
            assert (module.in_channels, module.num_attention_heads) == (block.in_channels, block.heads)
        else:
            assert (module.attn1.query_dim, module.attn1.heads) == (block.in_channels, block.heads)


@pytest.mark.parametrize("name", KNOWN_MAPS)
def test_a_known_map_alone_says_what_the_student_is(name):
    layers = KNOWN_MAPS[name]
    student = PRESETS["vega" if name == "ssd-1b-to-vega" else name].unet
    assert layers.student_spec(teacher_of(name)).same_network(student)
    assert layers.source
    assert not layers.new


def test_one_map_serves_every_width():
    assert KNOWN_MAPS["vega"].student_spec(PRESETS["mini-sdxl"].unet).same_network(VEGA_MINI.unet)


def test_what_the_known_maps_keep():
    ssd, vega = KNOWN_MAPS["ssd-1b"], KNOWN_MAPS["vega"]
    assert ssd.kept("down_blocks.2.attentions.1") == (0, 1, 2, 6)
    assert ssd.kept("up_blocks.0.attentions.2") == tuple(range(10))
    assert vega.kept("up_blocks.0.attentions.2") == (0, 6)
    assert [len(KNOWN_MAPS[name].blocks) for name in ("ssd-1b", "vega")] == [60, 41]
    koala = KNOWN_MAPS["koala-700m"]
    assert koala.blocks["up_blocks.1.resnets.1"] == "up_blocks.1.resnets.2"  # alone as wide as the next skip
    assert not [block for block in koala.student_blocks if block.startswith("mid_block")]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_choice_of_blocks_makes_a_student_and_survives_files(data):
    depths = {}

    def keep(layer: str, count: int, full: int) -> list[int]:
        kept = data.draw(st.lists(st.integers(0, full - 1), min_size=count, max_size=count, unique=True).map(sorted))
        depths[layer] = tuple(kept)
        return kept

    inner = tuple(data.draw(st.integers(1, 10)) for _ in range(3))
    up = tuple(data.draw(st.integers(1, 10)) for _ in range(3))
    student = SDXL.unet.model_copy(
        update={
            "mid_block_type": data.draw(st.sampled_from([None, "UNetMidBlock2D"])),
            "transformer_layers_per_block": (1, data.draw(st.integers(1, 2)), inner[:2]),
            "reverse_transformer_layers_per_block": (up, 1, 1),
        }
    )
    layers = match_layers(student, SDXL.unet, keep, "drawn")
    assert all(layers.kept(layer) == kept for layer, kept in depths.items())
    assert layers.student_spec(SDXL.unet).same_network(student)
    assert LayerMap.from_json(layers.to_json()) == layers
    assert LayerMap.from_dict(__import__("tomllib").loads(layers.to_toml())) == layers


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_map_comes_from_a_file(tmp_path: Path, suffix: str):
    path = tmp_path / f"map.{suffix}"
    layers = KNOWN_MAPS["vega"]
    path.write_text(layers.to_toml() if suffix == "toml" else layers.to_json(indent=1))
    assert read_map(str(path)) == layers == find_map(str(path), VEGA.unet, SDXL.unet)


def test_rules_are_known_by_name_and_random_ones_by_seed():
    kept = {
        rule: find_map(rule, VEGA.unet, SDXL.unet).kept("down_blocks.2.attentions.0")
        for rule in ("first", "even", "random", "random:0", "random:1", "random:2")
    }
    assert (kept["first"], kept["even"]) == ((0, 1), (0, 9))
    assert kept["random"] == kept["random:0"]
    assert len({kept[f"random:{seed}"] for seed in range(3)}) > 1
    assert [list(keep_evenly("", count, 10)) for count in (1, 2, 4)] == [[0], [0, 9], [0, 3, 6, 9]]
    drawn = [find_map(f"random:{seed}", SSD_1B.unet, SDXL.unet) for seed in range(4)]
    for layers in drawn:
        assert all(first < second for first, second in pairwise(layers.kept("up_blocks.0.attentions.1")))


def test_a_deeper_student_has_new_blocks():
    layers = find_map("first", SDXL.unet, VEGA.unet)
    assert (len(layers.blocks), len(layers.new)) == (41, 57)
    assert layers.check(SDXL.unet, VEGA.unet) is None


RESNET, BLOCK = "down_blocks.0.resnets.1", "down_blocks.2.attentions.0.transformer_blocks.0"


def changed(**blocks: str | None) -> dict[str, object]:
    table = dict(KNOWN_MAPS["vega"].blocks)
    for name, value in blocks.items():
        if value is None:
            del table[name]
        else:
            table[name] = value
    return {"blocks": table}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (
            changed(**{RESNET: "down_blocks.0.resnets.7"}),
            f"map.blocks.{RESNET}: 'down_blocks.0.resnets.7' .* one of the",
        ),
        (changed(**{RESNET: "down_blocks.1.resnets.0"}), f"map.blocks.{RESNET}: .* a block like"),
        (changed(**{RESNET: "mid_block.attentions.0"}), f"map.blocks.{RESNET}: .* of the same kind"),
        (changed(**{RESNET: "middle"}), f"map.blocks.{RESNET}: 'middle' .* names such as"),
        (changed(**{RESNET: None}), "one more than on the way down|for every student block"),
        (changed(**{BLOCK: None}), "transformer_blocks"),
        (changed(**{"down_blocks.1.attentions.0": None}), "whose attention layer is listed"),
        (changed(**{"mid_block.resnets.0": None, "mid_block.resnets.1": "mid_block.resnets.1"}), "mid_block.resnets"),
        (changed() | {"new": [RESNET]}, "map.new: .* that map.blocks does not name"),
        (changed() | {"new": ["conv_in"]}, "map.new: 'conv_in'"),
        (changed() | {"layers": {}}, "layers: .* only the known keys"),
    ],
)
def test_a_map_that_does_not_fit_names_the_block(data, match):
    with pytest.raises(InvalidValue, match=match):
        LayerMap.from_dict(data).check(VEGA.unet, SDXL.unet)
        raise AssertionError("accepted")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("up_blocks.0.resnets.3",), "up_blocks.0.resnets: 4 .* 3, one more"),
        (("down_blocks.0.attentions.0",), "down_blocks.0.attentions: 1 .* one for each of 2"),
        (("mid_block.resnets.1",), "mid_block: '2 resnets, 0 attention layers'"),
        (("mid_block.resnets.1", "mid_block.attentions.0"), "mid_block.attentions.0: 0 .* 2 blocks"),
    ],
)
def test_blocks_that_make_no_unet_are_refused(names, match):
    layers = KNOWN_MAPS["vega"].model_copy(update={"new": names})
    with pytest.raises(InvalidValue, match=re.compile(match)):
        layers.student_spec(SDXL.unet)


def test_unknown_maps_and_broken_files_are_one_line(tmp_path: Path):
    with pytest.raises(InvalidValue, match="map: 'vegan' .* one of: ssd-1b, vega, .* or a .toml or .json file"):
        read_map("vegan")
    with pytest.raises(MissingFile, match="missing.json: cannot be read"):
        read_map(str(tmp_path / "missing.json"))
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(VegaError):
        read_map(str(tmp_path / "half.json"))
    with pytest.raises(InvalidValue, match="a block of ssd-1b's student"):
        KNOWN_MAPS["ssd-1b"].then(KNOWN_MAPS["koala-1b"])
    with pytest.raises(InvalidValue, match="the student's 36 blocks"):
        find_map("vega", KOALA_700M.unet, SDXL.unet)
