"""Aspect-ratio buckets: sizes of equal area, which of them a picture goes to, and an order that leaves nobody out.

A micro-batch holds pictures of one size. Each bucket is an endless stream of its shuffled pictures, cut into blocks of
a micro-batch; how many blocks a bucket gives to an epoch is such that in the long run every picture comes up equally
often, so no remainder is dropped and no short batch is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from math import log

import torch

from vega_diffusion.data.order import ShuffledOrder
from vega_diffusion.diffusion.randomness import derive_seed

Size = tuple[int, int]
"""(width, height) in px."""


def bucket_sizes(resolution_px: int, step_px: int, max_aspect: float) -> list[Size]:
    """Return the sizes of at most `resolution_px`^2 pixels whose sides are multiples of `step_px`.

    For every width the largest height, with sides at most `max_aspect` apart and at least 85 % of the square's area,
    upright and lying; the square is always among them.

    Args:
        resolution_px: Side of the square, a multiple of `step_px`.
        step_px: What sides are multiples of: pixels of a latent cell times the U-Net's own reduction.
        max_aspect: Longest side over shortest, >= 1.
    """
    sizes = {(resolution_px, resolution_px)}
    for width in range(step_px, int(resolution_px * max_aspect) + 1, step_px):
        most = min(resolution_px**2 // width, int(width * max_aspect))
        height = most // step_px * step_px
        if height and width <= max_aspect * height and width * height >= 0.85 * resolution_px**2:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the bucket whose aspect ratio is nearest to a picture's, by the difference of logarithms."""
    wanted = log(size[0] / size[1])
    return min(buckets, key=lambda bucket: (abs(log(bucket[0] / bucket[1]) - wanted), bucket))


class BucketOrder:
    """Position of a run -> (bucket, item), `block` positions in a row from one bucket; a pure function.

    Args:
        sizes: Number of items of each bucket, all above 0.
        block: Positions of a micro-batch; blocks begin at multiples of it.
        seed: Seed of the shuffles.
    """

    def __init__(self, sizes: Sequence[int], block: int, seed: int) -> None:
        self.sizes, self.block, self.seed = tuple(sizes), block, seed
        self._streams = [ShuffledOrder(size, derive_seed(seed, "bucket", number)) for number, size in enumerate(sizes)]
        self._ends = [0]  # block numbers at which epochs end, as far as they were asked for
        self._epoch, self._blocks = -1, []

    def item(self, position: int) -> tuple[int, int]:
        """Return (bucket, item of that bucket) at a position."""
        number, place = divmod(position, self.block)
        epoch = self._epoch_of(number)
        if epoch != self._epoch:  # only a cache
            self._epoch, self._blocks = epoch, self._order(epoch)
        bucket, block = self._blocks[number - self._ends[epoch]]
        return bucket, self._streams[bucket].index(block * self.block + place)

    def _epoch_of(self, number: int) -> int:
        while self._ends[-1] <= number:
            epoch = len(self._ends) - 1
            self._ends.append(self._ends[-1] + sum(self._share(bucket, epoch) for bucket in range(len(self.sizes))))
        return next(epoch for epoch in count(self._near(number)) if number < self._ends[epoch + 1])

    def _near(self, number: int) -> int:
        """Return the epoch asked for last where it does not lie behind, else the first."""
        return self._epoch if 0 <= self._epoch < len(self._ends) and self._ends[self._epoch] <= number else 0

    def _share(self, bucket: int, epoch: int) -> int:
        """Return how many blocks a bucket gives to an epoch."""
        size = self.sizes[bucket]
        return (epoch + 1) * size // self.block - epoch * size // self.block

    def _order(self, epoch: int) -> list[tuple[int, int]]:
        """Return the (bucket, block of its stream) pairs of an epoch, shuffled."""
        blocks = [
            (bucket, epoch * size // self.block + number)
            for bucket, size in enumerate(self.sizes)
            for number in range(self._share(bucket, epoch))
        ]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "blocks", epoch))
        return [blocks[index] for index in torch.randperm(len(blocks), generator=generator).tolist()]


def histogram(buckets: Sequence[Size]) -> dict[str, int]:
    """Return "WIDTHxHEIGHT" -> number of pictures, the commonest first."""
    return {f"{width}x{height}": number for (width, height), number in Counter(buckets).most_common()}
