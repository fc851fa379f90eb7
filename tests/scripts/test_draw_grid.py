"""The grid holds one picture a prompt, each the one that the command draws for that prompt and seed."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vega_diffusion import Engine, GenerateRequest

SCRIPT = Path(__file__).parents[2] / "scripts" / "draw_grid.py"


def test_the_grid_shows_every_prompt_with_the_given_seed(model_folders: dict[str, Path], tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["main"].__globals__.update(PROMPTS=("a cat", "a boat"), COLUMNS=1)
    model, output = str(model_folders["tiny"]), tmp_path / "new" / "grid.png"
    assert script["main"](["--model", model, "--seed", "3", "--output", str(output)]) == 0
    grid = np.asarray(Image.open(output))
    gap, label = script["GAP_PX"], script["LABEL_PX"]
    (expected,) = Engine.load(model).generate(GenerateRequest(prompt="a boat", seed=3))
    width, height = expected.image.size
    assert grid.shape == (2 * (height + label) + gap, (width + gap) + gap, 3)
    top = gap + height + label
    assert np.array_equal(grid[top : top + height, gap : gap + width], np.asarray(expected.image))


def test_an_unknown_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(SCRIPT))["main"](["--model", str(tmp_path / "none"), "--output", "x.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
