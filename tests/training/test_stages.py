"""A chain of stages for real at tiny size: two students, one command, stopped between and within, resumed exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_distillation import recipe_text, teacher_text
from vega_diffusion.cli.main import main
from vega_diffusion.training.run_directory import RunDirectory

FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def recipe(stretched_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    teacher = stretched_folder
    file = tmp_path / "staged.toml"
    text = recipe_text(teacher_text("one", teacher, "vega"), steps=3, surgery=(teacher, "ssd-1b-to-vega"))
    file.write_text(text + '[[stages]]\nname = "ssd"\nbase = "ssd-mini"\nmap = "ssd-1b"\nsteps = 2\n')
    return file


@pytest.mark.slow
def test_a_chain_runs_resumes_and_ends_the_same(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe)]) == 0
    first, last = RunDirectory("staged.ssd"), RunDirectory("staged")
    assert (first.states / "step-00000002").is_dir()
    assert (last.states / "step-00000003").is_dir()
    weights = load_file(last.ema / FILE)
    assert len(load_file(first.ema / FILE)) == 944
    assert len(weights) == 564
    # Cut within the last stage; the first is not run again.
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "steps=1"]) == 0
    stamp = (RunDirectory("cut.ssd").ema / FILE).stat().st_mtime_ns
    capsys.readouterr()
    assert main(["train", str(recipe), "--run-name", "cut"]) == 0
    captured = capsys.readouterr()
    assert "resuming cut after step 1" in captured.err
    assert (RunDirectory("cut.ssd").ema / FILE).stat().st_mtime_ns == stamp
    again = load_file(RunDirectory("cut").ema / FILE)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert main(["train", str(recipe), "--init-from", "vega-mini"]) == 2
    assert "nothing with stages" in capsys.readouterr().err
    # A stage that is done by other values is not taken for this recipe's own.
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "seed=5"]) == 2
    assert "run cut.ssd: was trained by another recipe (seed)" in capsys.readouterr().err
