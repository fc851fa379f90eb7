"""What every backend answers: one U-Net evaluation of N rows, whole or shallow, and what is truly in use.

Rows are independent: each has its own timestep, guidance embedding and size numbers, so that a caller may pack the
steps of different requests into one question. No backend is here, and nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vega_diffusion.specs.profile import Backend, Precision

if TYPE_CHECKING:
    from torch import Tensor

MAX_ROWS = 8
"""Most rows of one evaluation: on one thread of a CPU more rows at once saved little (`docs/log.md`, 2026-11-26)."""
GUIDED_ROWS = 2
"""Rows of a guided question about one picture: the negative prompt's first."""


@dataclass(frozen=True)
class Question:
    """One U-Net evaluation.

    Attributes:
        x_t: `[N, C, h, w]` noisy latents, scaled for the model's input.
        timesteps: `[N]`, 0..999, whole or fractional.
        prompt_embeds: `[N, L, D]` hidden states of the text encoders.
        pooled_prompt_embeds: `[N, P]` pooled text; None for U-Nets without SDXL's added conditioning.
        time_ids: `[N, 6]` original height and width, crop top and left, target height and width, in pixels; None
            likewise.
        timestep_cond: `[N, W]` embedded guidance scale, for U-Nets distilled to take it as an input; else None.
    """

    x_t: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None = None
    time_ids: Tensor | None = None
    timestep_cond: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by name, in the order of the fields."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def mapped(self, change: Any) -> Question:
        """Return the question with every tensor changed by a function."""
        return Question(**{name: change(tensor) for name, tensor in self.named().items()})

    def rows(self, first: int, last: int) -> Question:
        """Return rows `first` up to, not including, `last`."""
        return self.mapped(lambda tensor: tensor[first:last])


def joined(questions: Sequence[Question]) -> Question:
    """Return the rows of several questions of one bucket and one kind, in order; one alone is returned itself.

    Raises:
        ValueError: There is none.
    """
    import torch

    if not questions:
        raise ValueError("no question to join")
    if len(questions) == 1:
        return questions[0]
    named = [question.named() for question in questions]
    return Question(**{name: torch.cat([each[name] for each in named]) for name in named[0]})


@dataclass(frozen=True, order=True)
class Bucket:
    """The static shape that a compiled graph is made for.

    Attributes:
        rows: U-Net rows: images, twice when guided.
        height: Of the latents, in cells.
        width: Likewise.
        text_length: Tokens of the prompt: 77, or a multiple for long weighted prompts.
    """

    rows: int
    height: int
    width: int
    text_length: int = 77

    @classmethod
    def of(cls, question: Question) -> Bucket:
        """Return the bucket that a question falls into."""
        rows, _, height, width = question.x_t.shape
        return cls(rows, height, width, question.prompt_embeds.shape[1])

    def __str__(self) -> str:
        return f"{self.rows}x{self.height}x{self.width}x{self.text_length}"


@dataclass(frozen=True)
class InUse:
    """What really runs, as reported by the library that runs it; for records of pictures and for tests.

    Attributes:
        backend: Which library evaluates.
        precision: In which numbers.
        is_compiled: Whether a compiled graph has answered.
        devices: Where, in the library's words: `("cpu",)`, `("cuda:0",)`, `("CPU",)`.
    """

    backend: Backend
    precision: Precision
    is_compiled: bool
    devices: tuple[str, ...]


class Denoiser(Protocol):
    """A U-Net that answers questions at two depths.

    `shallow` recomputes the outermost layers only and takes the rest, `deep`, from an earlier `full` (DeepCache).
    Answers have the dtype and the device of `x_t`.

    Source: Ma et al., DeepCache, arXiv 2312.00858, section 3.2.
    """

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        ...

    def predict(self, question: Question) -> Tensor:
        """Return the prediction `[N, C, h, w]`."""
        ...

    def full(self, question: Question) -> tuple[Tensor, Tensor]:
        """Return the prediction and `deep`, the hidden state that enters the outermost layers from below."""
        ...

    def shallow(self, question: Question, deep: Tensor) -> Tensor:
        """Return the prediction from the outermost layers and a hidden state of an earlier `full`, same rows."""
        ...

    def close(self) -> None:
        """Give back what was compiled or changed; the denoiser is not used afterwards."""
        ...


@runtime_checkable
class KeepsText(Protocol):
    """A denoiser that need not compute anew what depends on the prompt alone."""

    def text_kept(self) -> AbstractContextManager[None]:
        """Return a context for one run: within it, what follows from the same tensor of prompts is kept."""
        ...


class LatentDecoder(Protocol):
    """An autoencoder's decoder."""

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return `[N, 3, H, W]` in about -1..1 from latents `[N, C, h, w]` in the autoencoder's own scale."""
        ...


class TextEncoder(Protocol):
    """One text encoder."""

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        ...

    def encode(self, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the penultimate hidden states `[N, L, D]` and, with a projection, the pooled output `[N, P]`.

        `token_ids` is `[N, L]`, whole numbers.
        """
        ...

    def close(self) -> None:
        """Give back what was compiled; the encoder is not used afterwards."""
        ...
