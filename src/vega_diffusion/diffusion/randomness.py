"""Randomness as a function of position: the same (seed, position, purpose) always gives the same draw.

What lives here: seed derivation and per-sample draws. Resume is exact because nothing has to be remembered, and a
sample's draws do not depend on its batch mates, the number of processes or the micro-batch size.
What does not: shuffled orders of a data set (data/) and the initial noise of a picture (inference/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(seed: int, *parts: int | str) -> int:
    """Return a stable 63-bit seed, `blake2b(seed, *parts)`; equal on every machine and Python version.

    Args:
        seed: The seed of the run, any integer.
        parts: What tells this draw from others: positions, sample ids, purposes. 1 and "1" are different parts.
    """
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class PositionRng:
    """Draws for a batch whose sample i stands at `positions[i]` of the run.

    Every draw names its purpose; two draws with the same purpose are the same numbers, so a purpose is used once.
    Numbers are made on the CPU whatever the device is, so that a run on a GPU sees the noise of a run on a CPU.

    Args:
        seed: Seed of the run.
        positions: Global sample positions, one per sample of the batch, each >= 0.
        device: Where the drawn tensors are put.
        run_position: Where in the run the batch's first sample stands; `positions[0]` unless a run repeats samples.
    """

    def __init__(
        self,
        seed: int,
        positions: Sequence[int],
        device: torch.device | str = "cpu",
        run_position: int | None = None,
    ) -> None:
        self.seed = seed
        self.positions = tuple(int(position) for position in positions)
        self.device = torch.device(device)
        self.run_position = self.positions[0] if run_position is None else run_position

    def __len__(self) -> int:
        return len(self.positions)

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Standard normal draws, float32 `[B, *shape]`."""
        out = torch.empty((len(self), *shape))
        for row, generator in zip(out, self._generators(purpose), strict=True):
            torch.randn(tuple(shape), generator=generator, out=row)
        return self._placed(out)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform draws in [0, 1), float32 `[B, *shape]`."""
        rows = [torch.rand(tuple(shape), generator=generator) for generator in self._generators(purpose)]
        return self._placed(torch.stack(rows))

    def integers(self, low: int, high: int, purpose: str) -> Tensor:
        """Uniform integers in [low, high), int64 `[B]`."""
        rows = [torch.randint(low, high, (), generator=generator) for generator in self._generators(purpose)]
        return self._placed(torch.stack(rows))

    def fractions(self, purpose: str) -> list[float]:
        """Uniform numbers in [0, 1) for decisions that Python makes, one a sample; no device is waited for."""
        return [derive_seed(self.seed, position, purpose) / 2**63 for position in self.positions]

    def _generators(self, purpose: str) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(derive_seed(self.seed, p, purpose)) for p in self.positions]

    def _placed(self, drawn: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return drawn
        # Only a copy from pinned memory lets the host go on while the device is still at the step before.
        ready = drawn.pin_memory() if self.device.type == "cuda" else drawn
        return ready.to(self.device, non_blocking=True)
