"""What a loss looks like to the trainer: `Objective` and `Loss`. No objective is defined here."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng


@dataclass(frozen=True)
class Loss:
    """A batch's loss.

    Args:
        total: Scalar to minimise: the mean of `per_sample`, so that accumulated micro-batches equal one large batch.
        per_sample: `[B]`, without gradient; names the sample when one is not finite.
        parts: Scalars for the log, without gradient.
    """

    total: Tensor
    per_sample: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_samples(cls, per_sample: Tensor, parts: dict[str, Tensor] | None = None) -> Loss:
        """Build the loss from per-sample losses `[B]` and per-sample (or scalar) parts."""
        means = {name: value.detach().float().mean() for name, value in (parts or {}).items()}
        return cls(per_sample.mean(), per_sample.detach(), means)


class Objective(Protocol):
    """A function (student, batch, rng) -> Loss that owns its frozen helpers and never changes the student."""

    def __call__(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Loss:
        """Return the loss of a batch on the student's device; every draw comes from `rng`."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the frozen helpers to a device."""
        ...


@runtime_checkable
class Recordable(Protocol):
    """An objective whose computation on the device can be recorded and replayed for other samples."""

    def decided(self, rng: PositionRng) -> Hashable | None:
        """Return what Python decides of the computation for a batch: equal values, equal computations.

        None where it depends on single samples, so that a record of one batch is worth nothing for another.
        """
        ...
