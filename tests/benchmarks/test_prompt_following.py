"""The case takes whole test runs only, and takes their figures as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_evaluation import finished_run
from vega_diffusion.benchmarks.prompt_following import measure
from vega_diffusion.errors import VegaError


def test_bars_are_the_run_s_own_figures(tmp_path: Path) -> None:
    overall, single, seconds = measure(finished_run(tmp_path)).bars
    assert (overall.measured, overall.met) == (pytest.approx(5.5 / 6, abs=1e-4), True)
    assert (single.measured, single.met) == (0.5, False)
    assert (seconds.measured, seconds.met) == (800.0, True)
    asked_more = measure(finished_run(tmp_path), "gpu")
    assert [bar.limit for bar in asked_more.bars] == [0.85, 0.97, 900.0]
    assert "training on a GPU" in asked_more.protocol


@pytest.mark.parametrize("changes", [{"split": "dev"}, {"limit": 3}])
def test_no_other_run_counts(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(VegaError, match="no whole run on the test split"):
        measure(finished_run(tmp_path, **changes))
