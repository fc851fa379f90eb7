"""Case `prompt-following`: a finished run on the test split, held against the goals of the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import VegaError

if TYPE_CHECKING:
    from vega_diffusion.evaluation.results import EvaluationResult

# What the model was trained on -> the least overall score and that of single objects.
GOALS: dict[str, tuple[float, float]] = {"cpu": (0.60, 0.75), "gpu": (0.85, 0.97)}
LONGEST_S = 900.0


def measure(run: Path, trained_on: Literal["cpu", "gpu"] = "cpu") -> Measurement:
    """Take the figures of a finished evaluation; nothing is drawn or judged again.

    Args:
        run: Folder of `vega evaluate MODEL --split test`, or its name in `$VEGA_HOME/evaluations`.
        trained_on: What the model was trained on; on a GPU more is asked of it.

    Raises:
        MissingFile: The evaluation is not finished.
        VegaError: It is of the dev split, or of some prompts only.
    """
    least, least_single = GOALS[trained_on]
    result = whole_test_run(run, "run")
    assert result.overall is not None
    identity, model = result.identity, result.identity.model
    scores = {**result.kinds, **result.rows}
    ceiling, chance = ({**one.kinds, **one.rows} for one in (result.ceiling, result.chance))
    return Measurement(
        samples={"prompt_rates": [one.rate for one in result.prompts.values()]},
        summary={
            "overall": result.overall,
            **{str(kind): value for kind, value in scores.items()},
            "overall_ceiling": result.ceiling.overall or 0.0,
            **{f"{kind}_ceiling": value for kind, value in ceiling.items()},
            "overall_chance": result.chance.overall or 0.0,
            **{f"{kind}_chance": value for kind, value in chance.items()},
            **{f"{name}_interval": f"{low} to {high}" for name, (low, high) in result.intervals.items()},
            "num_images": result.num_images,
            "run": result.run,
            "model_digest": identity.model_digest,
            "suite_sha256": identity.suite_sha256,
            "checker_sha256": identity.checker_sha256,
        },
        bars=(
            _score(f"{model}, scenes-test, overall", result.overall, least),
            _score(f"{model}, scenes-test, single object", result.kinds["single_object"], least_single),
            Bar(
                what=f"{model}, scenes-test: {result.num_images} pictures drawn and judged",
                measured=result.seconds,
                unit="s",
                limit=LONGEST_S,
                better="lower",
            ),
        ),
        protocol=f"rules of docs/evaluation.md; goals are those for training on a {trained_on.upper()}; seconds are "
        "those of the run on its own machine, over all processes that worked on it one after another",
    )


def whole_test_run(run: Path, field: str) -> EvaluationResult:
    """Return a finished evaluation of the whole test split, which has an overall score.

    Args:
        run: Its folder, or its name in `$VEGA_HOME/evaluations`.
        field: What the user calls it.

    Raises:
        MissingFile: It is not finished.
        VegaError: It is of the dev split, or of some prompts only.
    """
    from vega_diffusion.evaluation.evaluate import EVALUATIONS
    from vega_diffusion.evaluation.ledger import belongs_in_ledger
    from vega_diffusion.evaluation.results import read_result
    from vega_diffusion.training.run_directory import vega_home

    known = vega_home() / EVALUATIONS / run
    result = read_result(known if known.is_dir() else run, field)
    if not belongs_in_ledger(result) or result.overall is None:
        raise VegaError(f"{field}: {run} is no whole run on the test split; run vega evaluate MODEL --split test")
    return result


def _score(what: str, value: float, limit: float) -> Bar:
    return Bar(what=what, measured=value, unit="of 1", limit=limit, better="higher")
