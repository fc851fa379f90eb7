"""Encoded captions on disk: what frozen text encoders say of every caption of a latent cache, read by memory map.

Encoding 77 tokens costs a quarter of a mini U-Net's training step; frozen encoders always say the same. The folder is
named by a hash of captions, tokenizers and encoder weights; how it lies on disk is `row_cache`'s affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vega_diffusion.data.row_cache import Progress, RowCache

EncodePrompts = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions -> `prompt_embeds [B, L, D]` and `pooled_prompt_embeds [B, P]`."""


@dataclass(frozen=True)
class PromptCache:
    """An open cache: row `scene * captions_per_scene + caption`.

    Args:
        prompt_embeds: fp16 `[N, L, D]`, a read-only memory map.
        pooled_prompt_embeds: fp16 `[N, P]`, a read-only memory map.
        empty: The same two for the empty caption, `[L, D]` and `[P]`.
    """

    prompt_embeds: np.ndarray
    pooled_prompt_embeds: np.ndarray
    empty: tuple[np.ndarray, np.ndarray]

    def take(self, rows: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Return fp32 embeddings of these rows; None stands for the empty caption."""
        tokens = [self.empty[0] if row is None else self.prompt_embeds[row] for row in rows]
        pooled = [self.empty[1] if row is None else self.pooled_prompt_embeds[row] for row in rows]
        return torch.from_numpy(np.stack(tokens)).float(), torch.from_numpy(np.stack(pooled)).float()


def open_prompts(
    root: Path,
    identity: dict[str, str | int],
    captions: Sequence[str],
    encode: EncodePrompts,
    progress: Progress = lambda done, total: None,
) -> PromptCache:
    """Return the encoded captions, encoding those that are not there yet.

    Args:
        root: Folder of all caches.
        identity: What decides the content: captions, tokenizers, weights of the encoders.
        captions: All captions, in row order.
        encode: The frozen encoders.
        progress: Called with (captions done, captions wanted) after every batch.

    Raises:
        VegaError: The disk is full; what was encoded is kept.
    """
    empty = tuple(part[0].half().numpy() for part in encode([""]))
    assert len(empty) == 2
    names = ("prompt_embeds", "pooled_prompt_embeds")
    rows = RowCache(root, identity, {name: part.shape for name, part in zip(names, empty, strict=True)})

    def make(part: range) -> tuple[dict[str, np.ndarray], list[None]]:
        arrays = zip(names, encode(captions[part.start : part.stop]), strict=True)
        return {name: values.half().numpy() for name, values in arrays}, [None] * len(part)

    rows.fill(len(captions), make, progress)
    tokens, pooled = (rows.field(name, len(captions)) for name in names)
    return PromptCache(tokens, pooled, empty)
