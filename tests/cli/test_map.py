"""`vega map` as a user runs it: list, show, carve, recover, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file

from vega_diffusion.cli.main import main
from vega_diffusion.models.detect import load_spec
from vega_diffusion.specs.known_maps import read_map
from vega_diffusion.specs.presets import VEGA_MINI

Capture = pytest.CaptureFixture[str]


def last_json(capsys: Capture, *argv: str) -> dict:
    assert main(["map", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: Capture, *argv: str) -> str:
    assert main(["map", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of mini-sdxl's shape, grown from vega-mini."""
    folder = tmp_path_factory.mktemp("map") / "teacher"
    assert main(["map", "carve", "vega-mini", str(folder), "--map", "first", "--student", "mini-sdxl"]) == 0
    return folder


def test_known_maps_are_listed_with_their_sources(capsys: Capture) -> None:
    assert main(["map", "list"]) == 0
    out = capsys.readouterr().out
    assert "vega            41 blocks; not published" in out
    assert "random[:SEED]" in out
    assert last_json(capsys, "list")["ssd-1b"]["name"] == "ssd-1b"
    assert main(["map"]) == 2
    assert main(["map", "--help"]) == 0


def test_show_says_what_the_student_is(capsys: Capture, tmp_path: Path) -> None:
    report = last_json(capsys, "show", "vega")
    assert (report["unet_parameters"], report["teacher_unet_parameters"]) == (745_225_604, 2_567_463_684)
    assert report["tensors"] == {"copied": 464, "reindexed": 100, "new": 0, "dropped": 1116}
    assert last_json(capsys, "show", "ssd-1b-to-vega")["unet_parameters"] == 745_225_604
    file = tmp_path / "even.toml"
    assert main(["map", "show", "even", "--teacher", "mini-sdxl", "--student", "vega-mini", "--output", str(file)]) == 0
    out = capsys.readouterr().out
    assert "0, 9 of 10" in out
    assert "dropped: mid_block.attentions.0, mid_block.resnets.1" in out
    assert read_map(str(file)).name == "even"
    assert last_json(capsys, "show", str(file), "--teacher", "mini-sdxl")["unet_parameters"] == 7_456_708
    assert main(["map", "show", "first", "--teacher", "vega-mini", "--student", "mini-sdxl"]) == 0
    assert "new: down_blocks.2.attentions.0.transformer_blocks.2 to 9\n" in capsys.readouterr().out


def test_carve_writes_a_student_and_recover_tells_its_map(teacher: Path, capsys: Capture, tmp_path: Path) -> None:
    student = tmp_path / "student"
    report = last_json(capsys, "carve", str(teacher), str(student), "--map", "vega")
    assert report["tensors"] == {"copied": 464, "reindexed": 100, "new": 0, "dropped": 1116}
    assert load_spec(student).unet.same_network(VEGA_MINI.unet)
    assert load_spec(student).generation == VEGA_MINI.generation
    stored = json.loads((student / "vega.json").read_text())["provenance"]
    assert (stored["trained"], stored["map"]["name"]) == (False, "vega")
    assert "not trained" in (student / "README.md").read_text()
    unet = UNet2DConditionModel.from_pretrained(student / "unet", variant="fp16")
    file = "unet/diffusion_pytorch_model.fp16.safetensors"
    assert torch.equal(unet.conv_in.weight, load_file(teacher / file)["conv_in.weight"].float())
    written = tmp_path / "found.json"
    found = last_json(capsys, "recover", str(student), str(teacher), "--output", str(written))
    assert found["map"]["blocks"] == read_map("vega").blocks == read_map(str(written)).blocks
    assert found["least_confidence"] > 0.9
    assert main(["map", "recover", str(student), str(teacher)]) == 0
    assert "least sure: " in capsys.readouterr().out
    assert main(["map", "carve", str(teacher), str(student), "--map", "vega"]) == 0  # an older student is replaced


def test_new_blocks_depend_on_the_seed(capsys: Capture, tmp_path: Path, teacher: Path) -> None:
    def grown(seed: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / str(seed)
        argv = ["carve", "vega-mini", str(folder), "--map", "first", "--student", "mini-sdxl", "--seed", str(seed)]
        assert main(["map", *argv]) == 0
        return load_file(folder / "unet/diffusion_pytorch_model.fp16.safetensors")

    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    first, again = grown(1), load_file(teacher / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert not torch.equal(first[name], again[name])
    assert torch.equal(first["conv_in.weight"], again["conv_in.weight"])
    assert torch.equal(grown(0)[name], again[name])


def test_what_is_wrong_is_one_line_and_costs_nothing(teacher: Path, capsys: Capture, tmp_path: Path) -> None:
    assert "vegan" in refused(capsys, "show", "vegan")
    assert "--student" in refused(capsys, "show", "first")
    assert "teacher's 41 blocks" in refused(capsys, "show", "vega", "--teacher", "vega-mini")
    assert ".toml or .json" in refused(capsys, "show", "vega", "--output", "map.txt")
    assert "cannot be written" in refused(capsys, "show", "vega", "--output", str(tmp_path / "no" / "map.toml"))
    assert "subcommand" in refused(capsys, "draw")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert "output" in refused(capsys, "carve", str(teacher), str(precious))
    assert (precious / "thesis.txt").read_text() == "years of work"
    before = (teacher / "vega.json").read_bytes()
    assert "output" in refused(capsys, "carve", str(teacher), str(teacher))
    assert (teacher / "vega.json").read_bytes() == before
