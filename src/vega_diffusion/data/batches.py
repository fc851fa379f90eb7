"""The shape of training data: `Batch`, and `BatchSource`, a pure function from sample positions to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples as tensors.

    Args:
        sample_ids: A name for each sample by which a user can find it again.
        tensors: Name -> tensor whose first dimension is the batch.
        captions: The samples' captions where the source has them; empty text for the empty condition.
    """

    sample_ids: list[str]
    tensors: dict[str, Tensor]
    captions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`; from pinned memory the host does not wait for the copy."""
        tensors = {name: tensor.to(device, non_blocking=tensor.is_pinned()) for name, tensor in self.tensors.items()}
        return Batch(self.sample_ids, tensors, self.captions)

    def pinned(self) -> Batch:
        """Return the batch in memory that an accelerator reads by itself."""
        tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return Batch(self.sample_ids, tensors, self.captions)


@dataclass(frozen=True)
class SampleKey:
    """What decides one sample's tensors, as text, and the shape `[C, H, W]` of its latents."""

    key: str
    shape: tuple[int, ...]


class BatchSource(Protocol):
    """Where samples come from. It has no length, no order and no state: sample p of the run is a function of p."""

    def load(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these global positions of the run."""
        ...

    def fingerprint(self) -> str:
        """Return a text that is equal only for sources that give equal samples at equal positions."""
        ...


class LatentSource(BatchSource, Protocol):
    """A source of latents that can say of single samples what they are made of."""

    def keys(self, positions: Sequence[int]) -> list[SampleKey]:
        """Return the keys of the samples at these positions; equal keys of one source mean equal tensors."""
        ...
