"""Encoded captions on disk: what frozen text encoders say of every caption, found again by its text.

Encoding 77 tokens costs a quarter of a mini U-Net's training step; frozen encoders always say the same. A store is
named by a hash of tokenizers and encoder weights; one changed caption is encoded alone, and two pictures with the same
caption share a row (`content_cache`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vega_diffusion.data.content_cache import ContentCache
from vega_diffusion.data.row_cache import Progress

EncodePrompts = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions -> `prompt_embeds [B, L, D]` and `pooled_prompt_embeds [B, P]`."""

BATCH = 64


@dataclass(frozen=True)
class PromptCache:
    """The captions of a source, encoded.

    Args:
        rows: fp16 `[N, L * D + P]`, a read-only memory map: both embeddings of a caption one after the other.
        numbers: Caption of the source -> row.
        shape: (L, D) of `prompt_embeds`.
        empty: The row of the empty caption.
    """

    rows: np.ndarray
    numbers: Sequence[int]
    shape: tuple[int, int]
    empty: int

    def take(self, captions: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Return fp32 `prompt_embeds [B, L, D]` and `pooled_prompt_embeds [B, P]` of captions by number.

        None stands for the empty caption.
        """
        found = [self.rows[self.empty if number is None else self.numbers[number]] for number in captions]
        both = torch.from_numpy(np.stack(found)).float()
        length = self.shape[0] * self.shape[1]
        return both[:, :length].unflatten(1, self.shape), both[:, length:]


def open_prompts(
    root: Path,
    identity: Mapping[str, str | int],
    captions: Sequence[str],
    encode: EncodePrompts,
    progress: Progress = lambda done, total: None,
) -> PromptCache:
    """Return the encoded captions, encoding those that are not there yet.

    Args:
        root: Folder of all stores.
        identity: What decides the content beside the text: tokenizers, weights of the encoders.
        captions: All captions of a source; the same one may come twice.
        encode: The frozen encoders.
        progress: Called with (captions encoded, captions that were missing).

    Raises:
        VegaError: The disk is full; what was encoded is kept.
    """
    embeds, pooled = encode([""])
    store = ContentCache(root, identity, (embeds[0].numel() + pooled[0].numel(),))
    texts = {hashlib.sha256(caption.encode()).hexdigest(): caption for caption in (*captions, "")}

    def make(keys: Sequence[str]) -> np.ndarray:
        tokens, pooled = encode([texts[key] for key in keys])
        return torch.cat([tokens.flatten(1), pooled], dim=1).half().numpy()

    keys = [hashlib.sha256(caption.encode()).hexdigest() for caption in (*captions, "")]
    rows, numbers = store.rows(keys, make, BATCH, progress)
    return PromptCache(rows, numbers[:-1], (embeds.shape[1], embeds.shape[2]), numbers[-1])
