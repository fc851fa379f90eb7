"""The order in which a finite data set is gone through: a fresh shuffle each epoch, a pure function of position."""

from __future__ import annotations

import torch

from vega_diffusion.diffusion.randomness import derive_seed


class ShuffledOrder:
    """Sample position p -> index, with p // size the epoch; every index comes up once an epoch.

    Args:
        size: Number of items.
        seed: Seed of the shuffles.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def index(self, position: int) -> int:
        """Return the item at a position of the run."""
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:  # only a cache: the permutation depends on (seed, epoch) alone
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._permutation = torch.randperm(self.size, generator=generator)
            self._epoch = epoch
        return int(self._permutation[place])
