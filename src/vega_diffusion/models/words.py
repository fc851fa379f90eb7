"""A token table of which a few rows alone learn: new words for a text encoder that must not forget the others."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class WordTable(nn.Module):
    """A text encoder's token table, frozen but for the rows of some tokens (as in textual inversion, arXiv 2208.01618).

    What is encoded without these tokens stays bit for bit as it was.

    Args:
        table: The table, `[V, D]`; its weight is taken over.
        tokens: Ids of the tokens that learn.
    """

    def __init__(self, table: nn.Embedding, tokens: Iterable[int]) -> None:
        super().__init__()
        self.tokens = sorted(set(tokens))
        self.weight = table.weight
        self.words = nn.Parameter(table.weight.detach()[self.tokens].clone())

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the rows `[..., D]` of ids `[...]`."""
        found = nn.functional.embedding(input_ids, self.weight)
        for token, word in zip(self.tokens, self.words, strict=True):
            found = torch.where((input_ids == token).unsqueeze(-1), word, found)
        return found

    @torch.no_grad()
    def plain(self) -> nn.Embedding:
        """Return a table of its own with the same rows."""
        weight = self.weight.detach().clone()
        weight[self.tokens] = self.words.detach()
        return nn.Embedding.from_pretrained(weight)


def learn_words(text_encoder: nn.Module, tokens: Iterable[int]) -> None:
    """Put a table whose rows of these tokens learn in the place of a `CLIPTextModel`'s own, with the same weights."""
    embeddings = _embeddings(text_encoder)
    embeddings.token_embedding = WordTable(embeddings.token_embedding, tokens)


def learns_words(component: nn.Module) -> bool:
    """Whether a component has a table of which rows learn."""
    return any(isinstance(child, WordTable) for child in component.modules())


def with_plain_table(component: nn.Module) -> nn.Module:
    """Return a component as its published files hold it: itself, or a copy whose words are rows of a plain table."""
    if not learns_words(component):
        return component
    copied = copy.deepcopy(component)
    embeddings = _embeddings(copied)
    embeddings.token_embedding = embeddings.token_embedding.plain()
    return copied


def _embeddings(text_encoder: nn.Module) -> Any:
    return next(child for child in text_encoder.modules() if hasattr(child, "token_embedding"))
