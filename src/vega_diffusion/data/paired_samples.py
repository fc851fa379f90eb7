"""Two sources taken turn and turn about, with a loss weight each: a subject's pictures and pictures of its class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vega_diffusion.data.batches import Batch, LatentSource, SampleKey


def prior_rows(positions: Sequence[int]) -> list[int]:
    """Return the rows of a batch of paired samples that are the second source's."""
    return [row for row, position in enumerate(positions) if position % 2]


class PairedSamples:
    """Even positions are the first source's samples, odd ones the second's.

    The weights make the mean over a batch equal to (mean of the first's losses) + `weight` (mean of the second's).

    Args:
        first: Of a subject.
        second: Of its class.
        weight: Of the class's loss, >= 0.

    Source: Ruiz et al. 2022, equation 2 (arXiv 2208.12242).
    """

    def __init__(self, first: LatentSource, second: LatentSource, weight: float) -> None:
        self.sources, self.weight = (first, second), weight

    def load(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions; an even number that begins at an even one holds both alike."""
        own = [[position // 2 for position in positions if position % 2 == side] for side in (0, 1)]
        batches = [source.load(some) for source, some in zip(self.sources, own, strict=True) if some]
        # From the order of the joined batches back to that of the positions.
        sides = torch.tensor([position % 2 for position in positions])
        order = torch.argsort(torch.argsort(sides, stable=True))
        names = [name for batch in batches for name in batch.sample_ids]
        captions = [text for batch in batches for text in batch.captions or []]
        tensors = {name: torch.cat([batch.tensors[name] for batch in batches])[order] for name in batches[0].tensors}
        tensors["loss_weight"] = torch.where(sides == 0, 2.0, 2.0 * self.weight)
        rows = order.tolist()
        return Batch([names[row] for row in rows], tensors, [captions[row] for row in rows])

    def keys(self, positions: Sequence[int]) -> list[SampleKey]:
        """Return what decides the samples at these positions."""
        return [self.sources[position % 2].keys([position // 2])[0] for position in positions]

    def fingerprint(self) -> str:
        """Return the identity of both sources and the weight."""
        return f"pairs {self.sources[0].fingerprint()} + {self.weight} {self.sources[1].fingerprint()}"
