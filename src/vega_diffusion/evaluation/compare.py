"""Two evaluations of the same prompts: paired differences with intervals, B less A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Protocol

from vega_diffusion.errors import VegaError
from vega_diffusion.evaluation.bootstrap import Interval, intervals
from vega_diffusion.evaluation.results import EvaluationResult
from vega_diffusion.evaluation.run_folder import Identity
from vega_diffusion.evaluation.scores import PromptRates
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.evaluation import OVERALL_KINDS, ROW_KINDS, SuiteKind


class Answered(Protocol):
    """What became of the prompts of one evaluation, by id."""

    @property
    def identity(self) -> Identity:
        """What was evaluated."""
        ...

    @property
    def prompts(self) -> Mapping[str, PromptRates]:
        """What became of each prompt."""
        ...


class Difference(Spec):
    """One score of both, and B less A with its 95 % interval; the interval draws prompts, each with both its rates."""

    a: float
    b: float
    difference: float
    interval: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        low, high = self.interval
        return low > 0 or high < 0


class Comparison(Spec):
    """What `vega evaluate compare` says; `settings` names those in which the two differ."""

    a: str
    b: str
    partial: bool
    overall: Difference | None
    kinds: dict[SuiteKind, Difference]
    rows: dict[SuiteKind, Difference]
    settings: dict[str, tuple[str, str]]
    num_prompts: int


def compare(a: EvaluationResult, b: EvaluationResult) -> Comparison:
    """Compare prompt by prompt.

    Raises:
        VegaError: They answered different prompts, or another checker judged them.
    """
    _check_same_prompts(a, b)
    pairs: dict[SuiteKind, list[tuple[float, float]]] = {}
    for name, first in a.prompts.items():
        pairs.setdefault(first.kind, []).append((first.rate, b.prompts[name].rate))
    differences = {kind: [second - first for first, second in found] for kind, found in pairs.items()}
    six = {kind: differences[kind] for kind in OVERALL_KINDS if kind in differences}
    found = intervals(six) | {
        kind: intervals({kind: differences[kind]})[kind] for kind in ROW_KINDS if kind in differences
    }
    single: dict[SuiteKind, Difference] = {
        kind: _difference(*_means(found_pairs), found[kind]) for kind, found_pairs in pairs.items()
    }
    overall = [_means(pairs[kind]) for kind in OVERALL_KINDS if kind in pairs]
    settings = a.identity.settings.keys() | b.identity.settings.keys()
    return Comparison(
        a=f"{a.identity.model} ({a.identity.model_digest[:10]})",
        b=f"{b.identity.model} ({b.identity.model_digest[:10]})",
        partial=a.partial,
        overall=_difference(*_means(overall), found[""]) if overall else None,
        kinds={kind: single[kind] for kind in OVERALL_KINDS if kind in single},
        rows={kind: single[kind] for kind in ROW_KINDS if kind in single},
        settings={
            key: (str(a.identity.settings.get(key)), str(b.identity.settings.get(key)))
            for key in sorted(settings)
            if a.identity.settings.get(key) != b.identity.settings.get(key)
        },
        num_prompts=len(a.prompts),
    )


def compare_seeds(pairs: Sequence[tuple[Answered, Answered]]) -> Difference:
    """Compare two ways of making a model, each with several seeds: (A, B) of every seed.

    A prompt's difference is its mean over the seeds; the interval draws prompts, so it does not grow narrower by
    counting a prompt once a seed.

    Raises:
        VegaError: Some answered different prompts, or another checker judged them.
    """
    by_kind: dict[SuiteKind, dict[str, list[tuple[float, float]]]] = {}
    for a, b in pairs:
        _check_same_prompts(a, b)
        _check_same_prompts(pairs[0][0], a)
        for name, first in a.prompts.items():
            by_kind.setdefault(first.kind, {}).setdefault(name, []).append((first.rate, b.prompts[name].rate))
    six = {kind: [_means(found) for found in by_kind[kind].values()] for kind in OVERALL_KINDS if kind in by_kind}
    overall = [_means(found) for found in six.values()]
    differences = {kind: [second - first for first, second in found] for kind, found in six.items()}
    return _difference(*_means(overall), intervals(differences)[""])


def _check_same_prompts(a: Answered, b: Answered) -> None:
    for name in ("suite", "split", "suite_sha256", "checker_sha256", "limit"):
        first, second = getattr(a.identity, name), getattr(b.identity, name)
        if first != second:
            raise VegaError(
                f"compare: {name} differs ({first} and {second}); allowed: results of the same prompts by the same "
                "checker; evaluate one of them again"
            )
    if a.prompts.keys() != b.prompts.keys():
        raise VegaError("compare: the prompts differ; allowed: results of the same prompts; evaluate one of them again")


def _means(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return fmean(first for first, _ in pairs), fmean(second for _, second in pairs)


def _difference(a: float, b: float, interval: Interval) -> Difference:
    return Difference(a=round(a, 4), b=round(b, 4), difference=round(b - a, 4), interval=interval)
