"""Several sources taken in turn, with a loss weight each: pictures to learn from, and pictures that must stay as is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vega_diffusion.data.batches import Batch, LatentSource, SampleKey


class InterleavedSamples:
    """Of n sources, position p is of source p mod n.

    The weights make the mean over a batch equal to the sum of each source's weight times the mean of its losses.

    Args:
        sources: Two or more; the first one is what the run is for.
        weights: Of their losses, >= 0.

    Source: Ruiz et al. 2022, equation 2 (arXiv 2208.12242), for a subject and its class.
    """

    def __init__(self, sources: Sequence[LatentSource], weights: Sequence[float]) -> None:
        self.sources, self.weights = tuple(sources), tuple(weights)

    def load(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions; whole rounds that begin at one hold all sources alike."""
        count = len(self.sources)
        own = [[position // count for position in positions if position % count == turn] for turn in range(count)]
        batches = [source.load(some) for source, some in zip(self.sources, own, strict=True) if some]
        # From the order of the joined batches back to that of the positions.
        turns = torch.tensor([position % count for position in positions])
        order = torch.argsort(torch.argsort(turns, stable=True))
        names = [name for batch in batches for name in batch.sample_ids]
        captions = [text for batch in batches for text in batch.captions or []]
        tensors = {name: torch.cat([batch.tensors[name] for batch in batches])[order] for name in batches[0].tensors}
        tensors["loss_weight"] = count * torch.tensor(self.weights)[turns]
        rows = order.tolist()
        return Batch([names[row] for row in rows], tensors, [captions[row] for row in rows])

    def keys(self, positions: Sequence[int]) -> list[SampleKey]:
        """Return what decides the samples at these positions: whose turn it is, that source's own key and position.

        A source knows its own positions alone, and timesteps and noise depend on those of the run.
        """
        count, found = len(self.sources), []
        for position in positions:
            turn = position % count
            own = self.sources[turn].keys([position // count])[0]
            found.append(SampleKey(f"{own.key} in turn {turn} of {count} at {position}", own.shape))
        return found

    def fingerprint(self) -> str:
        """Return the identity of all sources and their weights."""
        parts = (f"{weight} {one.fingerprint()}" for one, weight in zip(self.sources, self.weights, strict=True))
        return f"in turn {' + '.join(parts)}"
