"""The model that a commit embeds, out of the history."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.models.digest import model_digest

ROOT = Path(__file__).parents[2]
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "embedded_at.py"))
embedded_at = SCRIPT["embedded_at"]


def test_the_start_of_the_shipped_teacher_comes_out_of_the_history(tmp_path: Path) -> None:
    """It is the model that scenes-test gave 0.7789."""
    folder = embedded_at("fe7b9ff", tmp_path / "start")
    lines = (ROOT / "benchmarks" / "results" / "test-ledger.jsonl").read_text().splitlines()
    scores = {line["model_digest"]: line["overall"] for line in map(json.loads, lines)}
    assert scores[model_digest(folder)] == 0.7789
    with pytest.raises(InvalidValue, match="output: .*start.*; allowed: a new folder"):
        embedded_at("fe7b9ff", folder)


def test_a_commit_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(VegaError, match=r"commit: 'nothing' embeds no model here \(.*\); allowed: a commit"):
        embedded_at("nothing", tmp_path / "start")
    assert not list(tmp_path.iterdir())
