"""Captions -> token ids of a model's two tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import CLIPTokenizer

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions -> token ids of both tokenizers, int64 `[B, 77]` each."""


class TokenizerPair:
    """Both tokenizers of an SDXL-shaped model, cutting and padding to the encoders' length.

    Args:
        tokenizer: Of the first text encoder.
        tokenizer_2: Of the second, which pads with another token.
        length: Tokens the encoders read, 77.
    """

    def __init__(self, tokenizer: CLIPTokenizer, tokenizer_2: CLIPTokenizer, length: int) -> None:
        self.tokenizers, self.length = (tokenizer, tokenizer_2), length

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return both tokenizers' ids, int64 `[B, 77]` each."""
        first, second = (
            tokenizer(
                list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in self.tokenizers
        )
        return first, second

    def lost(self, caption: str) -> str:
        """Return the end of a caption that is cut off, empty where everything is read."""
        tokenizer = self.tokenizers[0]
        ids = tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids
        room = self.length - 2  # the start and end tokens
        return str(tokenizer.decode(ids[room:])).strip() if len(ids) > room else ""

    def digest(self) -> str:
        """Return a hash of vocabularies, merges and padding."""
        parts = [f"{t.backend_tokenizer.to_str()}|{t.pad_token}" for t in self.tokenizers]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
