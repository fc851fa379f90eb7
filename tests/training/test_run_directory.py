"""A run's folder says how far its published weights are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.run_directory import PUBLISHED_STEP, RunDirectory, unfinished

RECIPE = Path(__file__).parents[2] / "recipes/vega-mini-distill-cpu.toml"


def test_weights_of_a_run_that_is_not_done_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    run = RunDirectory("half")
    run.create()
    run.ema.mkdir()
    assert unfinished("run:half") is None, "says nothing of its step, as runs of older versions"
    run.recipe.write_text(TrainRecipe.read(RECIPE, ["steps=470"]).to_json())
    (run.ema / PUBLISHED_STEP).write_text(json.dumps({"step": 120}))
    assert unfinished("run:half") == "run:half: step 120 of 470"
    (run.ema / PUBLISHED_STEP).write_text(json.dumps({"step": 470}))
    assert unfinished("run:half") is None
    assert unfinished("mini-sdxl") is None
    assert unfinished("run:nobody") is None
