"""`vega convert` as a user meets it: layouts, merge, extract, resize, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_lora import random_lora
from vega_diffusion.cli.main import main
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.lora_algebra import product
from vega_diffusion.models.lora_file import read_lora, write_lora
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_weights import arrange


class Convert:
    """Runs the command in this process, in a folder with `style.safetensors` for the tiny model."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self.capsys = str(model), capsys
        tree = MapTree.of_spec(load_spec(model))
        weights = random_lora(tree, ["unet", "text_encoder_2"], rank=4, alpha=2.0)
        write_lora(Path("style.safetensors"), arrange(weights, "diffusers", tree))

    def __call__(self, *arguments: str) -> tuple[int, list[str], list[str]]:
        """Return exit code, lines of stdout, lines of stderr."""
        self.capsys.readouterr()
        code = main(["convert", *(one.replace("MODEL", self.model) for one in arguments)])
        captured = self.capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    def report(self, *arguments: str) -> dict:
        """Return what `--json` prints."""
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        return json.loads(out[-1])


@pytest.fixture
def convert(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Convert:
    monkeypatch.chdir(tmp_path)
    return Convert(tiny_folder, capsys)


def test_there_and_back_gives_the_same_file(convert: Convert) -> None:
    report = convert.report("lora", "style.safetensors", "kohya.safetensors", "--layout", "kohya", "--model", "MODEL")
    assert report == {
        "file": "kohya.safetensors",
        "from": "diffusers",
        "layout": "kohya",
        "adapters": len(read_lora(Path("style.safetensors")).adapters),
    }
    assert all(key.startswith("lora_") for key in load_file("kohya.safetensors"))
    code, out, _ = convert(
        "lora", "kohya.safetensors", "again.safetensors", "--layout", "diffusers", "--model", "MODEL"
    )
    assert (code, len(out)) == (0, 1)
    first, second = load_file("style.safetensors"), load_file("again.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_model_is_merged_and_its_lora_extracted(convert: Convert) -> None:
    report = convert.report("merge", "MODEL", "style.safetensors@0.5", "style.safetensors", "merged")
    assert report["loras"] == [
        {"file": "style.safetensors", "weight": 0.5},
        {"file": "style.safetensors", "weight": 1.0},
    ]
    assert (report["name"], report["maps"]) == ("merged", len(read_lora(Path("style.safetensors")).adapters))
    report = convert.report("extract", "MODEL", "merged", "found.safetensors", "--rank", "4")
    assert report["energy"] == pytest.approx(1.0, abs=1e-5)
    assert set(report["maps"]) == set(read_lora(Path("style.safetensors")).adapters)
    found, style = read_lora(Path("found.safetensors")).adapters, read_lora(Path("style.safetensors")).adapters
    for name, one in style.items():
        torch.testing.assert_close(product(found[name]), 1.5 * product(one), rtol=1e-3, atol=1e-4)
    code, out, _ = convert("extract", "MODEL", "merged", "small.safetensors", "--rank", "1", "--layout", "kohya")
    assert code == 0
    assert len(out) == len(style) + 1
    assert "keep " in out[-1]
    assert read_lora(Path("small.safetensors")).layout == "kohya"
    draw = ["generate", "a cat", "--model", "merged", "--num-steps", "1", "--output", "out"]
    assert main(draw) == 0


def test_sizes_by_rank_and_by_energy(convert: Convert) -> None:
    report = convert.report("resize", "style.safetensors", "two.safetensors", "--rank", "2")
    assert 0.5 < report["energy"] < 1
    assert all(pair == [4, 2] for pair in report["ranks"].values())
    two = read_lora(Path("two.safetensors"))
    assert (two.layout, {one.rank for one in two.adapters.values()}) == ("diffusers", {2})
    report = convert.report("resize", "style.safetensors", "most.safetensors", "--energy", "0.9")
    assert report["energy"] >= 0.9
    assert {pair[1] for pair in report["ranks"].values()} <= {2, 3, 4}
    assert convert("resize", "style.safetensors", "same.safetensors", "--rank", "4")[0] == 0
    assert Path("same.safetensors").read_bytes() == Path("style.safetensors").read_bytes()


def test_nothing_is_replaced_unless_forced(convert: Convert) -> None:
    Path("mine.safetensors").write_text("mine")
    shrink = ["resize", "style.safetensors", "mine.safetensors", "--rank", "1"]
    code, _, err = convert(*shrink)
    assert (code, len(err)) == (2, 1)
    assert "OUT: 'mine.safetensors' is not allowed" in err[0]
    assert Path("mine.safetensors").read_text() == "mine"
    assert convert(*shrink, "--force")[0] == 0
    assert read_lora(Path("mine.safetensors")).adapters
    before = Path("style.safetensors").read_bytes()
    code, _, err = convert("resize", "style.safetensors", "./style.safetensors", "--rank", "1", "--force")
    assert code == 2
    assert "another place than what is read" in err[0]
    assert Path("style.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["turn"], "subcommand: 'turn'"),
        (["lora", "style.safetensors", "new", "--layout", "comfy", "--model", "MODEL"], "--layout: 'comfy'"),
        (["lora", "nothing", "new", "--layout", "kohya", "--model", "MODEL"], "FILE: 'nothing' is no file"),
        (["lora", "style.safetensors", "new", "--layout", "kohya", "--model", "vega"], "adapters fit vega; not: "),
        (["lora", "style.safetensors", "new", "--layout", "kohya", "--model", "nowhere"], "model: 'nowhere'"),
        (["lora", "style.safetensors", "new"], "arguments: "),
        (["merge", "MODEL", "new"], "arguments: a LoRA file and OUT are needed"),
        (["merge", "MODEL", "style.safetensors@much", "new"], "FILE@WEIGHT: 'style.safetensors@much'"),
        (["merge", "MODEL", "style.safetensors", "new", "--precision", "int8"], "--precision: 'int8'"),
        (["merge", "nowhere", "style.safetensors", "new"], "model: 'nowhere'"),
        (["extract", "MODEL", "MODEL", "new", "--rank", "0"], "--rank: 0"),
        (["extract", "MODEL", "vega-mini", "new", "--rank", "2"], "TUNED: "),
        (["resize", "style.safetensors", "new"], "--rank or --energy"),
        (["resize", "style.safetensors", "new", "--rank", "2", "--energy", "0.5"], "one of them"),
        (["resize", "style.safetensors", "new", "--rank", "two"], "--rank: 'two'"),
        (["resize", "style.safetensors", "new", "--energy", "1.5"], "--energy: '1.5'"),
        (["resize", "style.safetensors", "new", "--energy", "0"], "--energy: '0'"),
        (["resize", "MODEL/unet/config.json", "new", "--rank", "1"], "not a safetensors file"),
        (["resize", "MODEL/unet/diffusion_pytorch_model.safetensors", "new", "--rank", "1"], "is no part of a LoRA"),
    ],
)
def test_mistakes_are_one_line(convert: Convert, arguments: list[str], message: str) -> None:
    code, _, err = convert(*arguments)
    assert (code, len(err)) == (2, 1), err
    assert message in err[0]
    assert not Path("new").exists()


def test_help_lists_the_subcommands(convert: Convert) -> None:
    code, out, _ = convert("--help")
    assert code == 0
    assert all(
        any(name in line for line in out) for name in ("lora", "merge", "extract", "resize", "single-file", "folder")
    )
    assert convert()[0] == 2


def test_a_model_folder_becomes_one_file(convert: Convert) -> None:
    report = convert.report("single-file", "MODEL", "one.safetensors", "--precision", "fp16")
    tensors = load_file("one.safetensors")
    assert report["tensors"] == len(tensors)
    assert report["bytes"] == Path("one.safetensors").stat().st_size
    assert {key.split(".")[0] for key in tensors} == {"model", "first_stage_model", "conditioner"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}

    report = convert.report("folder", "one.safetensors", "back", "--tokenizers", "MODEL")
    assert (report["name"], report["family"], report["left_out"]) == ("back", "mini", [])
    assert main(["generate", "a red apple", "--model", "./back", "--num-steps", "1", "--output", "one.png"]) == 0
    code, _, err = convert("folder", "one.safetensors", "back", "--tokenizers", "MODEL")
    assert (code, len(err)) == (2, 1)
    assert "--force" in err[0]

    before = Path("one.safetensors").read_bytes()
    code, _, err = convert("single-file", "MODEL", "one.safetensors", "--precision", "fp32")
    assert (code, len(err)) == (2, 1)
    assert "--force" in err[0]
    assert Path("one.safetensors").read_bytes() == before
    for wrong, told in (
        (("MODEL", "."), "OUT: '.'"),
        (("MODEL", "new.safetensors", "--precision", "int8"), "--precision"),
        (("nowhere", "new.safetensors"), "nowhere"),
    ):
        code, _, err = convert("single-file", *wrong)
        assert (code, len(err)) == (2, 1)
        assert told in err[0]
    assert not Path("new.safetensors").exists()


def test_what_is_read_is_not_deleted_with_an_older_model(convert: Convert) -> None:
    """`--force` replaces a whole folder: inputs inside it would go with it."""
    Path("old").mkdir()
    Path("old/model_index.json").write_text("{}")
    Path("style.safetensors").rename("old/style.safetensors")
    Path("old/whole.safetensors").write_text("mine")
    for arguments in (
        ("merge", "MODEL", "old/style.safetensors", "old"),
        ("folder", "old/whole.safetensors", "old", "--tokenizers", "MODEL"),
    ):
        code, _, err = convert(*arguments, "--force")
        assert (code, len(err)) == (2, 1)
        assert "OUT: 'old'" in err[0]
        assert "which is read" in err[0]
    assert {one.name for one in Path("old").iterdir()} == {"model_index.json", "style.safetensors", "whole.safetensors"}
