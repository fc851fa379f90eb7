"""Intervals by drawing prompts again with replacement (percentile bootstrap), kind by kind, with a fixed seed.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. Prompts are drawn, not pictures: the
pictures of one prompt succeed and fail together, so there is less to be sure of than their number suggests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

NUM_DRAWS = 2000
LEVEL = 0.95
SEED = 20_260_501

Interval = tuple[float, float]


def intervals(groups: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    """Return the 95 % interval of each group's mean, and under "" that of the mean of the groups' means.

    Args:
        groups: Name -> one value a prompt, at least one.
    """
    draws = {name: _draws(name, values) for name, values in groups.items()}
    found = {name: _interval(drawn) for name, drawn in draws.items()}
    if draws:
        found[""] = _interval(np.mean(list(draws.values()), axis=0))
    return found


def difference_interval(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> Interval:
    """Return the 95 % interval of (mean of group means of `second`) - (that of `first`), prompts drawn separately."""
    means = [
        np.mean([_draws(f"{side} {name}", values) for name, values in groups.items()], axis=0)
        for side, groups in (("first", first), ("second", second))
    ]
    return _interval(means[1] - means[0])


def _draws(name: str, values: Sequence[float]) -> np.ndarray:
    """Return the means of `NUM_DRAWS` samples; a group's draws do not depend on which other groups there are."""
    numbers = np.asarray(values, np.float64)
    rng = np.random.default_rng([SEED, *name.encode()])
    return numbers[rng.integers(0, len(numbers), (NUM_DRAWS, len(numbers)))].mean(axis=1)


def _interval(draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 4), round(float(high), 4)
