"""From judged pictures to scores: overall, kinds, rows, seen against unseen, chance, intervals. No drawing, no files.

A prompt's rate is the share of its pictures that pass, a kind's score the mean of its prompts' rates, `overall` the
mean of GenEval's six kinds. Scores lie in 0..1.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean

from vega_diffusion.evaluation.bootstrap import Interval, difference_interval, intervals
from vega_diffusion.evaluation.judgement import judge
from vega_diffusion.evaluation.run_folder import JudgedPicture
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.evaluation import OVERALL_KINDS, ROW_KINDS, SuiteKind, SuitePrompt

CHANCE_SEED = 1


class PromptRates(Spec):
    """What became of one prompt: whether each of its pictures passed."""

    kind: SuiteKind
    unseen: bool
    passed: tuple[bool, ...]

    @property
    def rate(self) -> float:
        """Share of the pictures that passed."""
        return sum(self.passed) / len(self.passed)


class Scores(Spec):
    """Scores of one set of verdicts, to four digits; `overall` is None where none of the six kinds was asked."""

    overall: float | None
    kinds: dict[SuiteKind, float]
    rows: dict[SuiteKind, float]


class SeenAndUnseen(Spec):
    """Combinations that training may show, against those that it never does; kinds that ask for both, and their mean.

    `difference` is unseen less seen, with its 95 % interval.
    """

    seen: Scores
    unseen: Scores
    difference: float | None
    interval: Interval | None


def prompt_rates(judged: Sequence[JudgedPicture]) -> dict[str, PromptRates]:
    """Return what became of each prompt, by id."""
    by_id: dict[str, list[JudgedPicture]] = {}
    for one in judged:
        by_id.setdefault(one.id, []).append(one)
    return {
        name: PromptRates(kind=found[0].kind, unseen=found[0].unseen, passed=tuple(one.passed for one in found))
        for name, found in by_id.items()
    }


def scores_of(rates: Mapping[str, PromptRates]) -> Scores:
    """Return the scores of some prompts."""
    means = {kind: fmean(values) for kind, values in by_kind(rates).items()}
    six = [means[kind] for kind in OVERALL_KINDS if kind in means]
    return Scores(
        overall=round(fmean(six), 4) if six else None,
        kinds={kind: round(means[kind], 4) for kind in OVERALL_KINDS if kind in means},
        rows={kind: round(means[kind], 4) for kind in ROW_KINDS if kind in means},
    )


def score_intervals(rates: Mapping[str, PromptRates]) -> dict[str, Interval]:
    """Return 95 % intervals by kind and row, and "overall"."""
    groups = by_kind(rates)
    found = intervals({kind: groups[kind] for kind in OVERALL_KINDS if kind in groups})
    overall = found.pop("", None)
    rows = intervals({kind: groups[kind] for kind in ROW_KINDS if kind in groups})
    rows.pop("", None)
    return ({} if overall is None else {"overall": overall}) | found | rows


def seen_and_unseen(rates: Mapping[str, PromptRates]) -> SeenAndUnseen:
    """Split the kinds that ask for both seen and unseen combinations (of `natural`, nothing is split)."""
    halves = [{name: found for name, found in rates.items() if found.unseen == unseen} for unseen in (False, True)]
    both = {kind for kind in by_kind(halves[0]) if kind in by_kind(halves[1])} - {"natural"}
    seen, unseen = ({name: found for name, found in half.items() if found.kind in both} for half in halves)
    first, second = scores_of(seen), scores_of(unseen)
    if first.overall is None or second.overall is None:
        return SeenAndUnseen(seen=first, unseen=second, difference=None, interval=None)
    groups = [
        {kind: values for kind, values in by_kind(half).items() if kind in OVERALL_KINDS} for half in (seen, unseen)
    ]
    return SeenAndUnseen(
        seen=first,
        unseen=second,
        difference=round(second.overall - first.overall, 4),
        interval=difference_interval(*groups),
    )


def chance_rates(prompts: Sequence[SuitePrompt], judged: Sequence[JudgedPicture]) -> dict[str, PromptRates]:
    """Judge the same pictures against other prompts of their kind: what a model that ignores its prompt would get.

    A kind of which only one prompt was asked has no other prompt, and no chance.
    """
    findings: dict[str, list[JudgedPicture]] = {}
    for one in judged:
        findings.setdefault(one.id, []).append(one)
    rates: dict[str, PromptRates] = {}
    for kind in (*OVERALL_KINDS, *ROW_KINDS):
        own = [prompt for prompt in prompts if prompt.kind == kind and prompt.id in findings]
        if len(own) < 2:
            continue
        for prompt, place in zip(own, derangement(len(own)), strict=True):
            passed = tuple(judge(own[place], one.finding).passed for one in findings[prompt.id])
            rates[prompt.id] = PromptRates(kind=kind, unseen=prompt.unseen, passed=passed)
    return rates


def derangement(count: int) -> list[int]:
    """Return a fixed arrangement of 0..count-1 in one cycle, so that nothing stays in its place.

    Source: Sattolo, An algorithm to generate a random cyclic permutation, 1986.
    """
    order = list(range(count))
    rng = random.Random(CHANCE_SEED)
    for last in range(count - 1, 0, -1):
        other = rng.randrange(last)
        order[last], order[other] = order[other], order[last]
    return order


def by_kind(rates: Mapping[str, PromptRates]) -> dict[SuiteKind, list[float]]:
    """Return the rates of prompts, by kind."""
    groups: dict[SuiteKind, list[float]] = {}
    for found in rates.values():
        groups.setdefault(found.kind, []).append(found.rate)
    return groups
