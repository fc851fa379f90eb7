"""`vega export`: a distilled student becomes a folder that stock diffusers loads, with a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors.torch import load_file

from tiny_distillation import recipe_text, teacher_text
from tiny_evaluation import tiny_checker
from vega_diffusion.cli.main import main
from vega_diffusion.training.run_directory import RunDirectory

TINY = "vae_tiny/diffusion_pytorch_model.fp16.safetensors"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def trained(stretched_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which `tiny` was distilled."""
    folder = tmp_path_factory.mktemp("export")
    teacher = stretched_folder
    objective = 'feature_level = "block"\n' + teacher_text("the-teacher", teacher, "even")
    recipe = folder / "tiny.toml"
    recipe.write_text(recipe_text(objective, steps=1, surgery=(teacher, "even")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VEGA_HOME", str(folder / "home"))
        assert main(["train", str(recipe), "--run-name", "tiny"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("VEGA_HOME", str(trained / "home"))
    capsys.readouterr()
    return "tiny"


def test_stock_diffusers_draws_with_what_was_exported(
    run: str, stretched_folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "little-vega"
    assert main(["export", f"run:{run}", str(folder), "--notes", "A trial.", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["name"], report["precisions"]) == ("little-vega", ["fp32", "fp16"])
    exported, averaged = load_file(folder / WEIGHTS), load_file(RunDirectory(run).ema / WEIGHTS)
    assert all(torch.equal(exported[key], value) for key, value in averaged.items())
    half = load_file(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert half.keys() == exported.keys()
    assert {value.dtype for value in half.values()} == {torch.float16}
    given, taken = (load_file(where / TINY) for where in (stretched_folder, folder))
    assert all(torch.equal(value, taken[key]) for key, value in given.items()), "the tiny autoencoder goes along"
    assert "vae_tiny" in json.loads((folder / "vega.json").read_text())["provenance"]["components"]
    for variant in (None, "fp16"):
        pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder, variant=variant, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        image = pipe("a cat", height=128, width=128, num_inference_steps=1).images[0]
        assert image.size == (128, 128)
    draw = ["generate", "a cat", "--model", str(folder), "--num-steps", "1", "--output", str(tmp_path / "out")]
    assert main(draw) == 0

    card = (folder / "README.md").read_text()
    for said in (
        "license: apache-2.0",
        "distilled",
        "| the-teacher |",
        "`even`",
        "captioned scenes",
        "| batch size | 4 |",
        "feature_level block",
        "| unet | tiny | 1 | 4 |",
        "A trial.",
        "Apache-2.0",
    ):
        assert said in card, said
    for text in (card, (folder / "vega.json").read_text()):
        # where files lay means nothing elsewhere
        assert not any(str(place) in text for place in (stretched_folder, trained, tmp_path))


def test_scores_go_into_the_card(run: str, tmp_path: Path) -> None:
    folder, evaluation = tmp_path / "model", tmp_path / "evaluation"
    assert main(["export", run, str(folder), "--precision", "fp16"]) == 0
    assert not (folder / WEIGHTS).exists()
    checker = str(tiny_checker(tmp_path / "checker")[0])
    quick = ["--limit", "1", "--num-steps", "1", "--processes", "1", "--checker", checker, "--output", str(evaluation)]
    assert main(["evaluate", str(folder), "--suite", "scenes", *quick]) == 0
    assert main(["export", run, str(folder), "--precision", "fp16", "--scores", str(evaluation)]) == 0
    card = (folder / "README.md").read_text()
    assert "## Scores" in card
    assert "scenes-dev" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "OUT"], "run:nothing: no recipe in"),
        (["tiny", "OUT", "--precision", "int8"], "--precision: 'int8'"),
        (["tiny", "OUT", "--scores", "nowhere"], "nowhere"),
        (["tiny", "OUT", "--vae", "nowhere"], "nowhere"),
        (["tiny", "/dev/null/out"], "/dev/null/out"),
        (["tiny"], "arguments: "),
    ],
)
def test_bad_input_is_one_line(
    run: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(one.replace("OUT", str(tmp_path / "out")) for one in arguments)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_file", [False, True])
def test_what_is_no_model_is_not_replaced(
    run: str, is_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "holiday"
    mine = place if is_file else place / "photo.jpg"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    assert main(["export", run, str(place)]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert f"FOLDER: {str(place)!r} is not allowed" in error
    assert "model_index.json" in error
    assert mine.read_text() == "mine"
