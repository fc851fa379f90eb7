"""Step packing: runs of different requests, at different steps, share one U-Net evaluation.

Timesteps, guidance and size conditions are of every row, so a U-Net does not care whose rows it gets; only shapes must
match. What does not live here: how a request becomes a run and its latents a picture (engine).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vega_diffusion.inference.backends.protocol import Denoiser, InUse, Question
from vega_diffusion.inference.denoise import Cancelled, ImageRun, advance


@dataclass(frozen=True)
class Packed:
    """A run and what it may be packed with.

    Args:
        run: On its way.
        denoiser: Its U-Net; runs of one call share it.
        weights: What must be equal for rows of one evaluation, where the U-Net cannot have weights by rows.
        owner: Whatever the caller knows it by.
    """

    run: ImageRun
    denoiser: Denoiser
    weights: Hashable = ()
    owner: Any = None

    @property
    def fits_with(self) -> Hashable:
        """What runs of one evaluation have in common at their next step."""
        run = self.run
        shape, length = tuple(run.latents.shape[1:]), run.conditioning.prompt_embeds.shape[1]
        return id(self.denoiser), self.weights, shape, length, run.is_deep, run.guidance_width, run.latents.dtype


During = Callable[[Sequence[Packed]], AbstractContextManager[None]]
Ended = tuple[ImageRun, Cancelled | None]
"""A run with clean latents, or with why it was cancelled."""


class Packer:
    """Takes many runs to their end, as many at once as rows allow; new ones may come at any time.

    Who has waited longest goes first, together with all that fit with it.

    Args:
        max_rows: Most rows of one evaluation; a run with more goes alone.
        during: Entered for every evaluation with the runs that take part, in the order of their rows: brings weights
            into the state that they need.
    """

    def __init__(self, max_rows: int, during: During = lambda chosen: nullcontext()) -> None:
        self.max_rows, self._during = max_rows, during
        self.evaluations = 0
        self._waiting: list[Packed] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, packed: Packed) -> None:
        """Let a run take part from the next evaluation on."""
        self._waiting.append(packed)

    def step(self) -> list[Ended]:
        """Advance some runs by one step.

        Returns:
            Those that ended: with clean latents, or with why they were cancelled.
        """
        ended: list[Ended] = [
            (packed.run, why) for packed in self._waiting if (why := _cancelled(packed.run)) is not None
        ]
        gone = {id(run) for run, _ in ended}
        self._waiting = [packed for packed in self._waiting if id(packed.run) not in gone]
        if not self._waiting:
            return ended
        chosen = self._chosen()
        with self._during(chosen):
            advance(chosen[0].denoiser, [packed.run for packed in chosen])
        self.evaluations += 1
        taken = {id(packed.run) for packed in chosen}
        waiting = [packed for packed in self._waiting if id(packed.run) not in taken]
        self._waiting = waiting + [packed for packed in chosen if not packed.run.is_done]
        ended += [(packed.run, None) for packed in chosen if packed.run.is_done]
        return ended

    def drain(self) -> Iterator[Ended]:
        """Advance until nothing waits; yields runs as they end."""
        while self._waiting:
            yield from self.step()

    def _chosen(self) -> list[Packed]:
        first = self._waiting[0]
        chosen, rows = [first], first.run.num_rows
        for packed in self._waiting[1:]:
            if packed.fits_with == first.fits_with and rows + packed.run.num_rows <= self.max_rows:
                chosen.append(packed)
                rows += packed.run.num_rows
        return chosen


def _cancelled(run: ImageRun) -> Cancelled | None:
    try:
        run.check_cancelled()
    except Cancelled as why:
        return why
    return None


class FixedRows:
    """A denoiser that always evaluates the same number of rows, so that kernels never change with the company.

    A row's result is then the same bits alone and among others, where kernels treat the rows of one shape alike (torch
    and OpenVINO on CPUs: tested); it costs the filling rows.

    Args:
        denoiser: What evaluates.
        rows: How many, always.
    """

    def __init__(self, denoiser: Denoiser, rows: int) -> None:
        self.denoiser, self.rows = denoiser, rows

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        return self.denoiser.in_use

    def predict(self, question: Question) -> Tensor:
        """Return the answers of the asked rows alone."""
        return self.denoiser.predict(question.mapped(self._filled))[: len(question.x_t)]

    def full(self, question: Question) -> tuple[Tensor, Tensor]:
        """Return the answers and deep states of the asked rows alone."""
        asked = len(question.x_t)
        prediction, deep = self.denoiser.full(question.mapped(self._filled))
        return prediction[:asked], deep[:asked]

    def shallow(self, question: Question, deep: Tensor) -> Tensor:
        """Return the answers of the outer layers with kept deep states."""
        return self.denoiser.shallow(question.mapped(self._filled), self._filled(deep))[: len(question.x_t)]

    def close(self) -> None:
        """Close what evaluates."""
        self.denoiser.close()

    def _filled(self, rows: Tensor) -> Tensor:
        missing = self.rows - len(rows)
        if missing < 0:
            raise ValueError(f"{len(rows)} rows for evaluations of {self.rows}")
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
