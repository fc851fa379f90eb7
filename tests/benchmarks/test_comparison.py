"""The case takes two whole test runs of the same prompts, and their paired difference as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_evaluation import finished_run
from vega_diffusion.benchmarks.comparison import measure
from vega_diffusion.errors import VegaError


def test_bars_are_the_difference_and_the_lower_end_of_its_interval(tmp_path: Path) -> None:
    worse, better = (
        finished_run(tmp_path / "a", wrong_kinds=2, model="small"),
        finished_run(tmp_path / "b", model="big"),
    )
    found = measure(worse, better)
    difference, lowest = found.bars
    assert (difference.measured, difference.met) == (pytest.approx(0.5 / 6, abs=1e-4), True)
    assert difference.what == "big less small, scenes-test, overall"
    assert lowest.measured <= difference.measured
    assert f"{lowest.measured} to " in str(found.summary["overall_interval"])
    assert (found.summary["two_objects"], found.summary["single_object"]) == (0.5, 0.0)


def test_no_difference_misses_both_goals(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "a")
    assert [bar.met for bar in measure(run, run).bars] == [False, False]


@pytest.mark.parametrize("changes", [{"split": "dev"}, {"limit": 3}])
def test_no_other_run_counts(tmp_path: Path, changes: dict) -> None:
    whole = finished_run(tmp_path / "a")
    with pytest.raises(VegaError, match="b: .* is no whole run on the test split"):
        measure(whole, finished_run(tmp_path / "b", **changes))


def test_other_prompts_are_never_compared(tmp_path: Path) -> None:
    with pytest.raises(VegaError, match="suite_sha256 differs"):
        measure(finished_run(tmp_path / "a"), finished_run(tmp_path / "b", suite_sha256="d" * 64))
