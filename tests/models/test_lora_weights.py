"""From one layout to the other and back without loss; stock diffusers loads both and computes what we compute."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tiny_lora import attention, random_lora
from tiny_models import SHAPES, tiny
from vega_diffusion.errors import UnreadableModel
from vega_diffusion.models.export import ModelParts
from vega_diffusion.models.lora_file import read_lora, write_lora
from vega_diffusion.models.lora_layouts import ADAPTABLE, LAYOUTS, MapTree, neutral_path
from vega_diffusion.models.lora_merge import merge_adapters
from vega_diffusion.models.lora_weights import arrange, convert_layout, fit_lora, load_lora_for
from vega_diffusion.models.measure import example_inputs
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import KOALA_700M, SDXL, VEGA


def everything(path: str) -> bool:
    return True


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("first", LAYOUTS)
def test_a_round_trip_of_layouts_loses_nothing(shape: str, dora: bool, first: Any, tmp_path: Path):
    tree = MapTree.of_spec(tiny(**SHAPES[shape]), shape)
    weights = random_lora(tree, pick=everything, alpha=0.7, dora=dora, dtype=torch.float16)
    weights["unet"]["conv_in"] = random_lora(tree, ["unet"], everything, rank=3, alpha=1 / 3, dora=dora)["unet"][
        "conv_in"
    ]
    second: Any = next(layout for layout in LAYOUTS if layout != first)
    write_lora(tmp_path / "one", arrange(weights, first, tree, {"ss_output_name": "it", "note": "kept"}))
    write_lora(tmp_path / "two", convert_layout(read_lora(tmp_path / "one"), second, tree))
    write_lora(tmp_path / "three", convert_layout(read_lora(tmp_path / "two"), first, tree))
    one, three = load_file(tmp_path / "one"), load_file(tmp_path / "three")
    assert one.keys() == three.keys()
    assert all(torch.equal(value, three[name]) and value.dtype == three[name].dtype for name, value in one.items())
    headers = []
    for name in ("one", "two", "three"):
        with safe_open(tmp_path / name, "pt") as file:
            headers.append(file.metadata())
    stated = {"ss_output_name": "it", "note": "kept"}
    assert all(header.items() >= stated.items() for header in headers)
    assert first == "diffusers" or headers[0] == headers[2]
    number = sum(len(maps) for maps in weights.values())
    assert len(three) == number * (2 + (first == "kohya") + dora)


def test_kohya_files_say_what_they_are_for(tmp_path: Path):
    for spec, base in ((SDXL, "sdxl_base_v1-0"), (VEGA, "sdxl_vega")):
        tree = MapTree.of_spec(spec)
        lora = arrange(random_lora(tree, ["text_encoder"], rank=1), "kohya", tree)
        assert lora.metadata["ss_base_model_version"] == base
        assert lora.metadata["ss_network_module"] == "networks.lora"
        kept = arrange(fit_lora(lora, tree), "kohya", tree, {"ss_base_model_version": "sdxl_other"})
        assert kept.metadata["ss_base_model_version"] == "sdxl_other"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pick", [attention, everything], ids=["attention", "everything"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_stock_diffusers_loads_our_files_and_computes_the_same(
    layout: Any,
    pick: Any,
    dtype: torch.dtype,
    tiny_folder: Path,
    tiny_spec: ModelSpec,
    tiny_parts: ModelParts,
    tmp_path: Path,
):
    tree = MapTree.of_spec(tiny_spec)
    weights = random_lora(tree, pick=pick, alpha=1.0, dtype=dtype)
    file = tmp_path / f"{layout}.safetensors"
    write_lora(file, arrange(weights, layout, tree))
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder, local_files_only=True)
    networks = [pipe.unet, pipe.text_encoder, pipe.text_encoder_2]
    plain = [outputs(network, tiny_spec) for network in networks]
    pipe.load_lora_weights(file)
    theirs = [outputs(network, tiny_spec) for network in networks]
    read = load_lora_for(file, tree)
    for component, before, expected in zip(ADAPTABLE, plain, theirs, strict=True):
        own = copy.deepcopy(getattr(tiny_parts, component)).eval()
        merge_adapters(own, component, [(read[component], 1.0)])
        found = outputs(own, tiny_spec)
        scale = expected.abs().max()
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=float(scale) * 1e-3)
        assert (expected - before).abs().max() > 0.03 * scale, component


@torch.no_grad()
def outputs(network: Any, spec: ModelSpec) -> torch.Tensor:
    """What a U-Net or a text encoder computes from fixed inputs."""
    torch.manual_seed(5)
    network.eval()
    if hasattr(network, "conv_in"):
        inputs = example_inputs(spec.unet, 8, 8, 7)
        inputs |= {name: torch.randn_like(inputs[name]) for name in ("sample", "encoder_hidden_states")}
        return network(**inputs).sample
    return network(torch.randint(0, 500, (1, 77)), output_hidden_states=True).hidden_states[-2]


def test_dora_files_load_in_stock_diffusers(
    tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts, tmp_path: Path
):
    """In diffusers' layout alone: its loader of kohya files drops `dora_scale`."""
    tree = MapTree.of_spec(tiny_spec)
    weights = random_lora(tree, ["unet"], everything, dora=True)
    write_lora(tmp_path / "it", arrange(weights, "diffusers", tree))
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder, local_files_only=True)
    pipe.load_lora_weights(tmp_path / "it")
    own = copy.deepcopy(tiny_parts.unet).eval()
    merge_adapters(own, "unet", [(weights["unet"], 1.0)])
    theirs = outputs(pipe.unet, tiny_spec)
    torch.testing.assert_close(outputs(own, tiny_spec), theirs, rtol=1e-2, atol=float(theirs.abs().max()) * 2e-3)


@pytest.mark.parametrize(("layout", "alpha"), [("diffusers", 4.5), ("diffusers", 1.0), ("kohya", 1.0)])
def test_diffusers_reads_the_scales_that_we_write(
    layout: Any, alpha: float, tiny_folder: Path, tiny_spec: ModelSpec, tmp_path: Path
):
    """Ranks and alphas that differ from map to map; alphas in kohya's layout it takes for equal, so we keep them so."""
    tree = MapTree.of_spec(tiny_spec)
    weights = random_lora(tree, alpha=1.0)
    for component, last in (("unet", "to_q"), ("text_encoder", "q_proj"), ("text_encoder_2", "q_proj")):
        other = random_lora(tree, [component], lambda path, last=last: path.endswith(last), rank=3, alpha=alpha)
        weights[component] |= other[component]
    write_lora(tmp_path / "it", arrange(weights, layout, tree))
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder, local_files_only=True)
    pipe.load_lora_weights(tmp_path / "it", adapter_name="it")
    for component, adapters in weights.items():
        named = getattr(pipe, component).named_modules()
        scales = {neutral_path(component, name): one.scaling["it"] for name, one in named if hasattr(one, "scaling")}
        assert scales == {path: one.scale for path, one in adapters.items()}
        assert len(set(scales.values())) == 2


@pytest.mark.parametrize("family", ["sgm", "diffusers"])
def test_both_families_of_kohya_names_mean_the_same_maps(family: str, tmp_path: Path):
    tree = MapTree.of_spec(tiny())
    weights = random_lora(tree, pick=everything)
    tensors = {}
    for component, maps in weights.items():
        for path, one in maps.items():
            flat = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[
                component
            ] + path.replace(".", "_")
            name = tree.kohya_names[component, path] if family == "sgm" else flat
            tensors |= {f"{name}.lora_down.weight": one.down, f"{name}.lora_up.weight": one.up}
    save_file(tensors, tmp_path / "it")
    found = load_lora_for(tmp_path / "it", tree)
    assert {name: set(maps) for name, maps in found.items()} == {name: set(maps) for name, maps in weights.items()}
    assert all(
        torch.equal(one.down, weights[name][path].down) for name, maps in found.items() for path, one in maps.items()
    )


def test_linear_maps_written_as_convolutions_fit(tmp_path: Path):
    tree = MapTree.of_spec(tiny())
    (path, one), *_ = random_lora(tree, ["unet"], lambda path: path.endswith("proj_in"))["unet"].items()
    name = tree.kohya_names["unet", path]
    save_file(
        {f"{name}.lora_down.weight": one.down[..., None, None], f"{name}.lora_up.weight": one.up[..., None, None]},
        tmp_path / "it",
    )
    assert torch.equal(load_lora_for(tmp_path / "it", tree)["unet"][path].down, one.down)


def test_a_lora_of_another_model_is_refused_with_a_count(tmp_path: Path):
    vega, koala = MapTree.of_spec(VEGA), MapTree.of_spec(KOALA_700M)
    lora = arrange(random_lora(vega, ["unet"], rank=1), "kohya", vega)
    with pytest.raises(UnreadableModel) as caught:
        fit_lora(lora, koala)
    message = str(caught.value)
    fit = sum(koala.find(name) is not None and shape_fits(lora, name, koala) for name in lora.adapters)
    assert 0 < fit < 120
    assert f"{fit} of 120 adapters fit koala-700m; not: lora_unet_" in message
    assert message.count("lora_unet_") == 3
    assert "and " in message
    assert "\n" not in message


def shape_fits(lora: Any, name: str, tree: MapTree) -> bool:
    place = tree.find(name)
    one = lora.adapters[name]
    return place is not None and tree.shapes[place[0]][place[1]] == (one.up.shape[0], *one.down.shape[1:])


def test_two_names_for_one_map_are_refused(tmp_path: Path):
    tree = MapTree.of_spec(tiny())
    lora = arrange(random_lora(tree, ["text_encoder"]), "kohya", tree)
    name = next(iter(lora.adapters))
    twice = {**lora.adapters, name.replace("text_model_", ""): lora.adapters[name]}
    with pytest.raises(UnreadableModel, match=r"16 of 17 adapters fit tiny; not: .*a second adapter of text_encoder"):
        fit_lora(type(lora)("kohya", twice), tree)
