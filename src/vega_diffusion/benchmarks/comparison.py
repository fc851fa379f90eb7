"""Case `comparison`: two finished runs on the test split, prompt by prompt: the larger model's less the other's."""

from __future__ import annotations

from pathlib import Path

from vega_diffusion.benchmarks.prompt_following import whole_test_run
from vega_diffusion.benchmarks.report import Bar, Measurement

DIFFERENCE = 0.03
LOWEST = 0.0001  # above zero; intervals have four digits


def measure(a: Path, b: Path) -> Measurement:
    """Take the paired difference B less A of two finished evaluations; nothing is drawn or judged again.

    Args:
        a: Folder of `vega evaluate MODEL --split test`, or its name in `$VEGA_HOME/evaluations`.
        b: The same of the model that should be better.

    Raises:
        MissingFile: An evaluation is not finished.
        VegaError: One is of the dev split or of some prompts only, or they answered different prompts.
    """
    from vega_diffusion.evaluation.compare import compare

    first, second = whole_test_run(a, "a"), whole_test_run(b, "b")
    found = compare(first, second)
    assert found.overall is not None
    names = f"{second.identity.model} less {first.identity.model}, scenes-test, overall"
    parts = {**found.kinds, **found.rows}
    return Measurement(
        samples={
            "a_rates": [one.rate for one in first.prompts.values()],
            "b_rates": [one.rate for one in second.prompts.values()],
        },
        summary={
            "a": found.a,
            "b": found.b,
            "overall": found.overall.difference,
            "overall_interval": interval_text(found.overall.interval),
            **{str(kind): one.difference for kind, one in parts.items()},
            **{f"{kind}_interval": interval_text(one.interval) for kind, one in parts.items()},
            "num_prompts": found.num_prompts,
            "run_a": first.run,
            "run_b": second.run,
            "other_settings": ", ".join(found.settings) or "none",
        },
        bars=(
            _bar(names, found.overall.difference, DIFFERENCE),
            _bar(f"{names}, lower end of its 95 % interval", found.overall.interval[0], LOWEST),
        ),
        protocol="paired by prompt, four pictures of the same seeds each; intervals draw prompts, 2,000 times",
    )


def interval_text(interval: tuple[float, float]) -> str:
    """Return an interval as "LOW to HIGH"."""
    return f"{interval[0]} to {interval[1]}"


def _bar(what: str, measured: float, limit: float) -> Bar:
    return Bar(what=what, measured=round(measured, 4), unit="of 1", limit=limit, better="higher")
