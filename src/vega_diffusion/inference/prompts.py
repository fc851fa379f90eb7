"""From prompts to what the U-Net is told about them: SDXL's two text encoders, read literally.

Prompt weights are in `weighting.py`; size and crop conditioning and the pairing with negatives are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vega_diffusion.inference.denoise import Conditioning
from vega_diffusion.inference.lines import cut_text
from vega_diffusion.specs.request import GenerateRequest


class TextReader(Protocol):
    """Tokenizers and what makes numbers of their tokens, first and second."""

    @property
    def tokenizers(self) -> Sequence[Any]:
        """CLIP tokenizers."""
        ...

    def max_length(self, index: int) -> int:
        """Return how many tokens encoder `index` reads, start and end included."""
        ...

    def encode(self, index: int, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return encoder `index`'s penultimate hidden states `[N, L, D]` and, with a projection, pooled `[N, P]`."""
        ...


@dataclass(frozen=True)
class TextStack:
    """The tokenizers and text encoders of one model, first and second.

    Attributes:
        tokenizers: CLIP tokenizers.
        encoders: `CLIPTextModel` and `CLIPTextModelWithProjection`.
    """

    tokenizers: Sequence[Any]
    encoders: Sequence[Any]

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        return self.encoders[-1].device

    def max_length(self, index: int) -> int:
        """Return how many tokens encoder `index` reads (77), start and end included.

        Folders written by transformers 5 claim an endless tokenizer; the encoder's positions are the true bound.
        """
        positions = self.encoders[index].config.max_position_embeddings
        return min(self.tokenizers[index].model_max_length, positions)

    def encode(self, index: int, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return encoder `index`'s penultimate hidden states `[N, L, D]` and, with a projection, pooled `[N, P]`."""
        encoder = self.encoders[index]
        output = encoder(token_ids.to(encoder.device), output_hidden_states=True)
        return output.hidden_states[-2], output[0] if output[0].ndim == 2 else None


@dataclass(frozen=True)
class EncodedText:
    """One text: hidden states `[1, L, D]`, pooled output `[1, P]`, and what the user should know about it."""

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    warnings: tuple[str, ...] = ()

    def zeros(self) -> EncodedText:
        """Return zeros of the same shapes: SDXL's missing negative prompt."""
        return EncodedText(torch.zeros_like(self.prompt_embeds), torch.zeros_like(self.pooled_prompt_embeds))


@torch.inference_mode()
def encode_plain(stack: TextReader, text: str, field: str = "prompt") -> EncodedText:
    """Encode a text literally: penultimate hidden states of both encoders, pooled output of the second.

    What does not fit into 77 tokens is cut, with a warning that names it.

    Args:
        stack: The model's tokenizers and encoders, in whatever backend.
        text: Any text; no character has a special meaning.
        field: What the warning calls it.

    Source: Podell et al., SDXL, arXiv 2307.01952, section 2.1.
    """
    hidden, pooled, warnings = [], None, []
    for index, tokenizer in enumerate(stack.tokenizers):
        limit = stack.max_length(index)
        ids = tokenizer(text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids
        if index == 0:
            warnings = _cut_warning(tokenizer, text, limit, field)
        states, projected = stack.encode(index, ids)
        pooled = pooled if projected is None else projected
        hidden.append(states)
    assert pooled is not None, "the second text encoder has a projection"
    return EncodedText(torch.cat(hidden, dim=-1), pooled, tuple(warnings))


def _cut_warning(tokenizer: Any, text: str, limit: int, field: str) -> list[str]:
    """Return the line that names the text beyond the limit, or nothing."""
    ids = tokenizer(text).input_ids
    if len(ids) <= limit:
        return []
    cut = tokenizer.decode(ids[limit - 1 : -1])
    return [cut_text(field, limit, cut)]


def time_ids(request: GenerateRequest, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `[1, 6]`: original height and width, crop top and left, target height and width, in pixels.

    Source: Podell et al., SDXL, arXiv 2307.01952, section 2.2.
    """
    assert request.original_size and request.crop_top_left and request.height and request.width, "a resolved request"
    numbers = [*request.original_size, *request.crop_top_left, request.height, request.width]
    return torch.tensor([numbers], dtype=dtype, device=device)


def as_conditioning(text: EncodedText, ids: Tensor) -> Conditioning:
    """Return the text and the size numbers as one row for the U-Net."""
    return Conditioning(text.prompt_embeds, text.pooled_prompt_embeds, ids)
