"""Teachers at work: which one teaches which sample at which step, and which of them are in memory.

A teacher is loaded when its first step comes and let go after its last one. Who teaches a sample is a function of its
position and caption, so a resumed run asks the same teachers. What is not here: where weights come from (training/).
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vega_diffusion.diffusion.parameterisation import PredictionType
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.errors import VegaError
from vega_diffusion.objectives.features import Pair
from vega_diffusion.specs.distillation import TeacherSpec


class Recalled(NamedTuple):
    """What a teacher said of some samples: its prediction `[N, C, H, W]`, and inner states `[N, ...]` by module."""

    prediction: Tensor
    states: dict[str, Tensor]


@dataclass(frozen=True)
class Teacher:
    """One teacher.

    Args:
        spec: When and whom it teaches.
        prediction_type: What it predicts.
        pairs: Modules whose outputs are compared; none where features are not.
        load: Returns its U-Net: frozen, in evaluation mode, on the current device of its weights.
        outline: Returns the same network on the meta device, without values.
        recall: Sample positions -> what it said of them before, the states of `pairs` among it; None asks it.
    """

    spec: TeacherSpec
    prediction_type: PredictionType
    pairs: tuple[Pair, ...]
    load: Callable[[], nn.Module]
    outline: Callable[[], nn.Module]
    recall: Callable[[Sequence[int]], Recalled] | None = None


class Teachers:
    """The teachers of a run.

    Args:
        teachers: All of them.
        batch_size: Samples of one optimizer step, from which a sample's position tells its step.
    """

    def __init__(self, teachers: Sequence[Teacher], batch_size: int) -> None:
        self.teachers, self.batch_size = tuple(teachers), batch_size
        self.device = torch.device("cpu")
        self._loaded: dict[int, nn.Module] = {}

    def to(self, device: torch.device) -> None:
        """Move those that are loaded; others follow when they are."""
        self.device = device
        for unet in self._loaded.values():
            unet.to(device)

    def unet(self, index: int) -> nn.Module:
        """Return a teacher's U-Net, loading it where it is not there yet."""
        if index not in self._loaded:
            self._loaded[index] = self.teachers[index].load().to(self.device)
        return self._loaded[index]

    def active(self, rng: PositionRng) -> list[int]:
        """Return who teaches at the step of these positions, and let go of those who never will again."""
        step = rng.run_position // self.batch_size
        for index in list(self._loaded):
            stop = self.teachers[index].spec.stop_step
            if stop is not None and step >= stop:
                del self._loaded[index]
        return [index for index, one in enumerate(self.teachers) if one.spec.teaches_at(step)]

    def assign(self, captions: Sequence[str] | None, rng: PositionRng) -> dict[int, list[int]]:
        """Return teacher -> the rows it teaches; every row belongs to exactly one, some teachers may have none.

        Args:
            captions: The samples' captions; needed where a teacher asks for some.
            rng: Draws and positions of the batch.

        Raises:
            VegaError: A teacher goes by captions and the data have none.
        """
        active = self.active(rng)
        general = [index for index in active if self.teachers[index].spec.captions is None]
        routed = [index for index in active if index not in general]
        if routed and captions is None:
            raise VegaError("objective.teachers.captions: these samples have no captions; use other data or remove it")
        if len(active) == 1:
            return {active[0]: list(range(len(rng)))}
        bounds = list(accumulate(self.teachers[index].spec.share for index in general))
        rows: dict[int, list[int]] = {index: [] for index in active}
        for row, fraction in enumerate(rng.fractions("teacher")):
            by_caption = (index for index in routed if self._wants(index, captions[row] if captions else ""))
            drawn = general[min(bisect(bounds, fraction * bounds[-1]), len(general) - 1)]
            rows[next(by_caption, drawn)].append(row)
        return rows

    def _wants(self, index: int, caption: str) -> bool:
        pattern = self.teachers[index].spec.captions
        return pattern is not None and re.search(pattern, caption) is not None
