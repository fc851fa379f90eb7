"""Loads the next samples while a device computes: an accelerator that waits for its data earns nothing.

On a CPU the two would take turns on the same cores, so nothing is loaded ahead there. What is loaded does not depend on
when: samples are a function of their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vega_diffusion.data.batches import Batch, BatchSource


class Prefetch:
    """Samples on a device, those that are probably asked for next already on their way.

    Args:
        source: The samples.
        device: Where they are wanted.
        ahead: Whether to load ahead; where the device is a GPU unless given.
    """

    def __init__(self, source: BatchSource, device: torch.device, ahead: bool | None = None) -> None:
        self.source, self.device = source, device
        on_gpu = device.type == "cuda"
        self._pool = ThreadPoolExecutor(1, "prefetch") if (on_gpu if ahead is None else ahead) else None
        self._coming: tuple[tuple[int, ...], Future[Batch]] | None = None

    def load(self, positions: Sequence[int], then: Sequence[int] = ()) -> Batch:
        """Return the samples at these positions on the device.

        Args:
            positions: Of the source.
            then: Positions of the call after this one; a wrong guess costs time and nothing else.
        """
        if self._pool is None:
            return self.source.load(positions).to(self.device)
        wanted, coming = tuple(positions), self._coming
        self._coming = None
        # An error of a guess that nobody needs is not raised.
        batch = coming[1].result() if coming is not None and coming[0] == wanted else self._loaded(wanted)
        if then:
            self._coming = tuple(then), self._pool.submit(self._loaded, tuple(then))
        return batch.to(self.device)

    def close(self) -> None:
        """End the thread; what it had loaded is dropped."""
        self._coming = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _loaded(self, positions: Sequence[int]) -> Batch:
        batch = self.source.load(positions)
        # From pinned memory a copy goes its own way; from other memory the host would wait for the device first.
        return batch.pinned() if self.device.type == "cuda" else batch
