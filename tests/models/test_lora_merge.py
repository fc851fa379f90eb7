"""Merged folders compute what model and LoRA compute; a LoRA extracted from one is the LoRA that went in."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny_lora import random_lora
from vega_diffusion.errors import InvalidValue, UnreadableModel
from vega_diffusion.models.checkpoint import load_text_encoder, load_unet
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.digest import file_digest, model_digest
from vega_diffusion.models.export import ModelParts
from vega_diffusion.models.find import resolve_model
from vega_diffusion.models.layout import read_json
from vega_diffusion.models.lora_algebra import product
from vega_diffusion.models.lora_file import write_lora
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_merge import (
    WeightedFile,
    extract_lora,
    merge_adapters,
    merge_model,
    restore,
)
from vega_diffusion.models.lora_weights import arrange
from vega_diffusion.specs.architecture import ModelSpec

UNET = "unet/diffusion_pytorch_model.safetensors"
PICKED = {"unet": lambda path: "attn1.to_q" in path or "conv1" in path, "text_encoder": lambda path: "fc1" in path}


@pytest.fixture
def loras(tiny_spec: ModelSpec, tmp_path: Path) -> list[WeightedFile]:
    tree = MapTree.of_spec(tiny_spec)
    first = {name: random_lora(tree, [name], pick)[name] for name, pick in PICKED.items()}
    second = random_lora(tree, ["unet"], lambda path: "attn1.to" in path, seed=7, rank=3)
    write_lora(tmp_path / "one.safetensors", arrange(first, "kohya", tree))
    write_lora(tmp_path / "two.safetensors", arrange(second, "diffusers", tree))
    return [WeightedFile(tmp_path / "one.safetensors", 0.8), WeightedFile(tmp_path / "two.safetensors", -0.5)]


def test_ejecting_puts_back_the_same_tensors(tiny_spec: ModelSpec, tiny_parts: ModelParts):
    unet: Any = copy.deepcopy(tiny_parts.unet)
    unet.to(torch.bfloat16)
    weights = random_lora(MapTree.of_spec(tiny_spec), ["unet"], lambda path: True)["unet"]
    before = {name: (value.data_ptr(), value.clone()) for name, value in unet.named_parameters()}
    kept = merge_adapters(unet, "unet", [(weights, 1.0)])
    assert len(kept) == len(weights)
    moved = [name for name, value in unet.named_parameters() if not torch.equal(value, before[name][1])]
    assert len(moved) == len(weights)
    restore(kept)
    for name, value in unet.named_parameters():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])


def test_a_merged_folder_holds_the_changed_weights_and_tells_of_it(
    tiny_folder: Path, loras: list[WeightedFile], tmp_path: Path
):
    spec, maps = merge_model(tiny_folder, "the-base", loras, tmp_path / "merged", ("fp32", "fp16"))
    folder = resolve_model(tmp_path / "merged")
    assert load_spec(folder) == spec
    base, whole = load_file(tiny_folder / UNET), load_file(folder / UNET)
    half = load_file(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    moved = {name for name, value in whole.items() if not torch.equal(value, base[name])}
    assert maps == len(moved) + 2, "two layers of the text encoder"
    assert all("attn1.to" in name or "conv1.weight" in name for name in moved)
    assert all(torch.equal(value.half(), half[name]) for name, value in whole.items())
    for component in ("text_encoder_2", "vae"):
        name = next(path.name for path in (tiny_folder / component).glob("*.safetensors") if "fp16" not in path.name)
        assert (folder / component / name).read_bytes() == (tiny_folder / component / name).read_bytes()
    said = read_json(folder / "vega.json")["provenance"]
    assert said["merged"]["model"] == "the-base"
    assert said["merged"]["model_digest"] == model_digest(tiny_folder)
    assert said["merged"]["loras"] == [
        {"file": one.path.name, "sha256": file_digest(one.path), "weight": one.weight} for one in loras
    ]
    assert said["base"] == {"weights": "random"}
    assert "one.safetensors" in (folder / "README.md").read_text()


def test_the_scheduler_stays_as_it_is(tiny_folder: Path, loras: list[WeightedFile], tmp_path: Path):
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (model / "vega.json").unlink()  # it would have to say the same
    config = model / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(read_json(config) | {"timestep_spacing": "trailing", "sigma_max": 12.0}))
    merge_model(model, "the-base", loras, tmp_path / "merged")
    assert (tmp_path / "merged/scheduler/scheduler_config.json").read_bytes() == config.read_bytes()
    assert load_spec(tmp_path / "merged").schedule == load_spec(model).schedule


def test_a_tiny_autoencoder_goes_along(tiny_folder: Path, loras: list[WeightedFile], tmp_path: Path):
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    shutil.copytree(resolve_model("vega-mini") / "vae_tiny", model / "vae_tiny")
    merge_model(model, "the-base", loras, tmp_path / "merged")
    for path in (model / "vae_tiny").iterdir():
        assert (tmp_path / "merged" / "vae_tiny" / path.name).read_bytes() == path.read_bytes()


def test_precision_is_that_of_the_model_unless_given(tiny_folder: Path, loras: list[WeightedFile], tmp_path: Path):
    for path in tiny_folder.rglob("*.safetensors"):
        if "fp16" not in path.name:
            path.unlink()
    merge_model(tiny_folder, "base", loras, tmp_path / "half")
    assert all("fp16" in path.name for path in (tmp_path / "half").rglob("*.safetensors"))
    merge_model(tiny_folder, "base", loras, tmp_path / "whole", ("fp32",))
    assert not any("fp16" in path.name for path in (tmp_path / "whole").rglob("*.safetensors"))
    one, two = load_file(tmp_path / "half" / UNET.replace(".safe", ".fp16.safe")), load_file(tmp_path / "whole" / UNET)
    assert all(torch.equal(value, two[name].half()) for name, value in one.items())


def test_what_was_merged_is_extracted_again(tiny_folder: Path, tiny_spec: ModelSpec, tmp_path: Path):
    tree = MapTree.of_spec(tiny_spec)
    weights = {name: random_lora(tree, [name], pick, rank=2)[name] for name, pick in PICKED.items()}
    write_lora(tmp_path / "it", arrange(weights, "diffusers", tree))
    merge_model(tiny_folder, "base", [WeightedFile(tmp_path / "it")], tmp_path / "merged", ("fp32",))
    found, found_tree = extract_lora(tiny_folder, tmp_path / "merged", 2)
    assert found_tree.shapes == tree.shapes
    assert {name: set(maps) for name, maps in found.weights.items()} == {
        name: set(maps) for name, maps in weights.items()
    }
    for component, maps in weights.items():
        for path, one in maps.items():
            torch.testing.assert_close(product(found.weights[component][path]), product(one), rtol=1e-3, atol=1e-4)
    assert found.share == pytest.approx(1.0, abs=1e-6)
    assert found.left_out == ()
    half, _ = extract_lora(tiny_folder, tmp_path / "merged", 1)
    assert 0.4 < half.share < 0.98
    assert half.share == pytest.approx(
        sum(share * energy for share, energy in half.kept.values()) / sum(energy for _, energy in half.kept.values())
    )


def test_what_no_lora_can_hold_is_told(tiny_folder: Path, tiny_spec: ModelSpec, tmp_path: Path):
    tuned = tmp_path / "tuned"
    tree = MapTree.of_spec(tiny_spec)
    write_lora(tmp_path / "it", arrange(random_lora(tree, ["text_encoder"], PICKED["text_encoder"]), "kohya", tree))
    merge_model(tiny_folder, "base", [WeightedFile(tmp_path / "it")], tuned, ("fp32",))
    from safetensors.torch import save_file

    weights = load_file(tuned / UNET)
    weights["conv_norm_out.bias"] += 1.0
    save_file(weights, tuned / UNET, {"format": "pt"})
    found, _ = extract_lora(tiny_folder, tuned, 2)
    assert found.left_out == ("unet.conv_norm_out.bias",)
    assert set(found.weights) == {"text_encoder"}


def test_refusals(tiny_folder: Path, loras: list[WeightedFile], model_folders: dict[str, Path], tmp_path: Path):
    other = model_folders["no-mid-block"]
    with pytest.raises(UnreadableModel, match=r"one\.safetensors: 2 of \d+ adapters fit no-mid-block; not: lora_unet_"):
        merge_model(other, str(other), loras, tmp_path / "out")
    with pytest.raises(InvalidValue, match="TUNED: .*the unet of"):
        extract_lora(tiny_folder, other, 2)
    with pytest.raises(InvalidValue, match="TUNED: .*maps differ"):
        extract_lora(tiny_folder, tiny_folder, 2)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/keep.txt").write_text("mine")
    for force, message in ((False, "add --force"), (True, "an older model's")):
        with pytest.raises(InvalidValue, match=message):
            merge_model(tiny_folder, "base", loras, tmp_path / "taken", force=force)
    with pytest.raises(InvalidValue, match="another place than what is read"):
        merge_model(tiny_folder, "base", loras, tiny_folder, force=True)
    assert (tmp_path / "taken/keep.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_unmerged_maps_and_other_networks_are_untouched(tiny_folder: Path, loras: list[WeightedFile], tmp_path: Path):
    spec, _ = merge_model(tiny_folder, "base", loras, tmp_path / "merged", ("fp32",))
    one = load_text_encoder(tiny_folder, "text_encoder", spec.text_encoder).state_dict()
    two = load_text_encoder(tmp_path / "merged", "text_encoder", spec.text_encoder).state_dict()
    assert {name for name in one if not torch.equal(one[name], two[name])} == {
        name for name in one if name.endswith("fc1.weight")
    }
    assert load_unet(tmp_path / "merged", spec.unet).training is False
