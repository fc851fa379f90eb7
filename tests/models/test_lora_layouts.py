"""Names of LoRA files: one for every map of every shape, as diffusers' own converter and sd-scripts have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from tiny_models import SHAPES, tiny
from vega_diffusion.models.lora_layouts import MapTree, published_path
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import KOALA_1B, KOALA_700M, MINI_SDXL, SDXL, SSD_1B, VEGA, VEGA_MINI

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = {"sdxl": SDXL, "ssd-1b": SSD_1B, "vega": VEGA, "koala-1b": KOALA_1B, "koala-700m": KOALA_700M}
MINI = {"mini-sdxl": MINI_SDXL, "vega-mini": VEGA_MINI} | {name: tiny(**changes) for name, changes in SHAPES.items()}


@pytest.mark.parametrize("spec", (PUBLISHED | MINI).values(), ids=(PUBLISHED | MINI).keys())
def test_every_map_of_every_shape_has_names_that_lead_back_to_it(spec: ModelSpec):
    tree = MapTree.of_spec(spec)
    places = [(component, path) for component, maps in tree.shapes.items() for path in maps]
    assert len(places) > 100
    assert set(tree.kohya_names) == set(places)
    assert len(set(tree.kohya_names.values())) == len(places)
    for component, path in places:
        flat = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[component]
        assert tree.find(tree.kohya_names[component, path]) == (component, path)
        assert tree.find(f"{component}.{path}") == (component, path)
        # kohya's prefixes before diffusers' names, and the exports in which transformers 5 lost a level
        assert tree.find(flat + published_path(component, path).replace(".", "_")) == (component, path)
        assert tree.find(flat + path.replace(".", "_")) == (component, path)
    assert tree.find("lora_unet_input_blocks_99_1_proj_in") is None


@pytest.mark.parametrize(("name", "maps"), [("sdxl", 1059), ("vega", 504)])
def test_names_are_those_that_diffusers_reads(name: str, maps: int):
    """The golden lists come from diffusers' converter alone (tests/golden/README.md)."""
    rows = [line.split("\t") for line in (GOLDEN / f"lora-keys-{name}.tsv").read_text().splitlines()]
    assert len(rows) == maps
    tree = MapTree.of_spec(PUBLISHED[name])
    ours = {
        (kohya, f"{component}.{published_path(component, path)}")
        for (component, path), kohya in tree.kohya_names.items()
    }
    assert ours == {(kohya, path) for kohya, path in rows}


def test_sdxl_has_as_many_maps_as_sd_scripts_counts():
    """Its log says of SDXL: 722 modules in the U-Net's transformers, 72 and 192 in layers of text encoders."""
    tree = MapTree.of_spec(SDXL)
    inside = [path for path in tree.shapes["unet"] if ".attentions." in path]
    layers = [sum("layers." in path for path in tree.shapes[name]) for name in ("text_encoder", "text_encoder_2")]
    assert (len(inside), layers) == (722, [72, 192])


@pytest.mark.parametrize("name", ["sdxl", "ssd-1b", "vega"])
def test_names_of_single_file_checkpoints_are_the_same(name: str):
    """A second converter of diffusers, for whole checkpoints, takes every name to the map that we mean."""
    spec = PUBLISHED[name].unet
    paths = MapTree.of_spec(PUBLISHED[name]).shapes["unet"]
    from vega_diffusion.models.lora_layouts import sgm_names

    marks = {path: torch.tensor(number) for number, path in enumerate(paths)}
    state = {
        f"model.diffusion_model.{sgm}.{kind}": marks[path]
        for path, sgm in sgm_names(paths).items()
        for kind in ("weight", "bias")
    }
    found: Any = convert_ldm_unet_checkpoint(state, spec.to_config() | {"class_embed_type": None})
    weights = {key.removesuffix(".weight"): value for key, value in found.items() if key.endswith(".weight")}
    assert {path: int(value) for path, value in weights.items() if value is not None} == {
        path: int(value) for path, value in marks.items()
    }


def test_levels_of_unequal_length_are_counted_one_by_one():
    """By hand from the definition: no table of SDXL's depths would give these."""
    tree = MapTree.of_spec(KOALA_700M)
    names = {path: name for (component, path), name in tree.kohya_names.items() if component == "unet"}
    assert not any("middle_block" in name for name in names.values())
    assert names["down_blocks.0.downsamplers.0.conv"] == "lora_unet_input_blocks_2_0_op"
    assert names["down_blocks.1.attentions.0.proj_in"] == "lora_unet_input_blocks_3_1_proj_in"
    assert names["up_blocks.0.upsamplers.0.conv"] == "lora_unet_output_blocks_1_2_conv"


def test_text_encoders_are_read_with_and_without_the_level_that_transformers_dropped():
    encoder = build_text_encoder(VEGA_MINI.text_encoder)
    wrapped = torch.nn.Module()
    wrapped.text_model = encoder if not hasattr(encoder, "text_model") else encoder.text_model
    flat = MapTree.of("flat", {"text_encoder": encoder})
    nested = MapTree.of("nested", {"text_encoder": wrapped})
    assert flat.shapes == nested.shapes
    assert len(flat.shapes["text_encoder"]) == 24
