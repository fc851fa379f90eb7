"""Samples loaded ahead are the samples, whatever was guessed, and errors come where they belong."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from vega_diffusion.data.batches import Batch
from vega_diffusion.errors import VegaError
from vega_diffusion.training.prefetch import Prefetch

CPU = torch.device("cpu")


class Numbers:
    """A source whose samples are their positions; it notes what was loaded by which thread, and fails at 13."""

    def __init__(self) -> None:
        self.loaded: list[tuple[tuple[int, ...], bool]] = []

    def load(self, positions: Sequence[int]) -> Batch:
        self.loaded.append((tuple(positions), threading.current_thread() is threading.main_thread()))
        if 13 in positions:
            raise VegaError("sample 13 is torn")
        return Batch([str(one) for one in positions], {"x": torch.tensor(list(positions))})

    def fingerprint(self) -> str:
        return "numbers"


def test_what_was_guessed_rightly_is_loaded_once_and_beside() -> None:
    source = Numbers()
    ahead = Prefetch(source, CPU, ahead=True)
    for start in range(0, 8, 2):
        batch = ahead.load(range(start, start + 2), range(start + 2, start + 4))
        assert batch.tensors["x"].tolist() == [start, start + 1]
    ahead.close()
    assert source.loaded[0] == ((0, 1), True)
    # The last guess may be dropped before it is begun.
    assert source.loaded[1:4] == [((2, 3), False), ((4, 5), False), ((6, 7), False)]


def test_a_wrong_guess_costs_nothing_but_time_even_where_it_fails() -> None:
    ahead = Prefetch(Numbers(), CPU, ahead=True)
    ahead.load([0], [13])
    assert ahead.load([5]).sample_ids == ["5"]
    ahead.load([0], [13])
    with pytest.raises(VegaError, match="sample 13"):
        ahead.load([13])
    ahead.close()


def test_on_a_cpu_nothing_is_loaded_ahead() -> None:
    source = Numbers()
    Prefetch(source, CPU).load([0], [1])
    assert source.loaded == [((0,), True)]
