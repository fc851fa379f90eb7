"""The order in which a finite data set is gone through: a fresh shuffle each epoch, a pure function of position."""

from __future__ import annotations

import torch

from vega_diffusion.diffusion.randomness import derive_seed


class ShuffledOrder:
    """Sample position p -> index, with p // size the epoch; every index comes up once an epoch.

    Args:
        size: Number of items.
        seed: Seed of the shuffles.
        block: So many items stay together in their order; a divisor of `size`.
        starts_in_order: Whether the first epoch is not shuffled, for items that are drawn at random themselves.
    """

    def __init__(self, size: int, seed: int, block: int = 1, starts_in_order: bool = False) -> None:
        if size % block:
            raise AssertionError(f"block {block} does not divide {size}")
        self.size, self.seed, self.block, self.starts_in_order = size, seed, block, starts_in_order
        self._last = -1, torch.empty(0, dtype=torch.int64)

    def index(self, position: int) -> int:
        """Return the item at a position of the run."""
        epoch, place = divmod(position, self.size)
        if epoch == 0 and self.starts_in_order:
            return place
        block, within = divmod(place, self.block)
        known, permutation = self._last  # together: samples are loaded in more than one thread
        if epoch != known:  # only a cache: the permutation depends on (seed, epoch) alone
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            permutation = torch.randperm(self.size // self.block, generator=generator)
            self._last = epoch, permutation
        return int(permutation[block]) * self.block + within
