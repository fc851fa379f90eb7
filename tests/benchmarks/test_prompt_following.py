"""The case takes whole test runs only, and takes their figures as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_evaluation import identity, judged, prompt
from vega_diffusion.benchmarks.prompt_following import measure
from vega_diffusion.errors import VegaError
from vega_diffusion.evaluation.results import make_result
from vega_diffusion.specs.evaluation import OVERALL_KINDS


def run(folder: Path, split: str = "test", limit: int | None = None) -> Path:
    asked = [prompt(f"{kind}-000", 10 * row, 2) for row, kind in enumerate(OVERALL_KINDS)]
    found = [one for number, each in enumerate(asked) for one in judged(each, True, number > 0)]
    about = {"run": "r", "commit": None, "finished": "2026-01-01T00:00:00+00:00", "seconds": 800.0}
    result = make_result(asked, found, found, identity(split=split, limit=limit), **about)  # type: ignore[arg-type]
    (folder / "result.json").write_text(result.to_json())
    return folder


def test_bars_are_the_run_s_own_figures(tmp_path: Path) -> None:
    overall, single, seconds = measure(run(tmp_path)).bars
    assert (overall.measured, overall.met) == (pytest.approx(5.5 / 6, abs=1e-4), True)
    assert (single.measured, single.met) == (0.5, False)
    assert (seconds.measured, seconds.met) == (800.0, True)


@pytest.mark.parametrize("changes", [{"split": "dev"}, {"limit": 3}])
def test_no_other_run_counts(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(VegaError, match="no whole run on the test split"):
        measure(run(tmp_path, **changes))
