"""Prompts to token ids without transformers: the tokenizer itself, and CLIP's fixed length around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from vega_diffusion.specs.base import Spec


class TokenizerSpec(Spec):
    """What transformers adds to a tokenizer file.

    Args:
        limit: Tokens of every text, start and end included.
        pad_id: What shorter texts are filled up with.
        end_id: What a cut text ends with.
    """

    limit: int
    pad_id: int
    end_id: int


class LeanTokenizer:
    """A CLIP tokenizer.

    Args:
        path: Its `tokenizer.json`.
        spec: What is not in there.
    """

    def __init__(self, path: Path, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        self._tokenizer, self._spec = Tokenizer.from_file(str(path)), spec
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def ids(self, text: str) -> numpy.ndarray[Any, Any]:
        """Return `[1, limit]` token ids, cut or filled up."""
        ids, limit = self._tokenizer.encode(text).ids, self._spec.limit
        if len(ids) > limit:
            ids = [*ids[: limit - 1], self._spec.end_id]
        return numpy.array([ids + [self._spec.pad_id] * (limit - len(ids))], numpy.int64)

    def cut(self, text: str) -> str | None:
        """Return the part of a text that does not fit, or None."""
        ids = self._tokenizer.encode(text).ids
        if len(ids) <= self._spec.limit:
            return None
        # CLIP's vocabulary marks ends of words, which transformers turns into spaces.
        told = self._tokenizer.decode(ids[self._spec.limit - 1 : -1], skip_special_tokens=False)
        return told.replace(self._tokenizer.model.end_of_word_suffix, " ").strip()
