"""What calibration is made of: what a model is really asked while it draws, and the latents that come of it.

Which prompts are drawn is the caller's choice (the model's own kind); what is done with the questions is in
`openvino_quantise.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from torch import Tensor

from vega_diffusion.inference.backends.protocol import Denoiser, InUse, Question

_MAX_TIMESTEP = 1000.0
_CELLS = 32  # a side: a whole picture of 1024 px would take hours to measure every layer on


@dataclass(frozen=True)
class Drawn:
    """What some pictures of a model left.

    Attributes:
        questions: What its U-Net was asked, noisiest first; guided ones have two rows, the negative prompt's first.
        latents: Clean latents `[1, C, h, w]`, one a picture, in the autoencoder's own scale.
    """

    questions: list[Question]
    latents: list[Tensor]


class RecordingDenoiser:
    """Answers through another denoiser and keeps some of what is asked, whole: guidance compares a question's rows.

    The timesteps are divided into equal intervals, and each keeps a fair sample of the questions that fall into it
    (reservoir sampling), the same for the same course of questions.
    """

    def __init__(self, inner: Denoiser, num_questions: int, num_intervals: int = 16, seed: int = 0) -> None:
        """Listen to a denoiser.

        Args:
            inner: Who answers.
            num_questions: How many to keep, at most.
            num_intervals: Of the timesteps.
            seed: Of the choice.
        """
        self._inner, self._random = inner, Random(seed)
        num_intervals = min(num_intervals, num_questions)
        self._sizes = [
            num_questions // num_intervals + (index < num_questions % num_intervals) for index in range(num_intervals)
        ]
        self._kept: list[list[Question]] = [[] for _ in self._sizes]
        self._seen = [0 for _ in self._sizes]

    @property
    def in_use(self) -> InUse:
        """What answers."""
        return self._inner.in_use

    def predict(self, question: Question) -> Tensor:
        """Answer, and perhaps keep the question."""
        self._listen(question)
        return self._inner.predict(question)

    def full(self, question: Question) -> tuple[Tensor, Tensor]:
        """Answer, and perhaps keep the question."""
        self._listen(question)
        return self._inner.full(question)

    def shallow(self, question: Question, deep: Tensor) -> Tensor:
        """Answer; shallow graphs are not calibrated."""
        return self._inner.shallow(question, deep)

    def close(self) -> None:
        """Close the inner denoiser."""
        self._inner.close()

    def questions(self) -> list[Question]:
        """Return what was kept, noisiest first."""
        kept = [question for questions in self._kept for question in questions]
        return sorted(kept, key=lambda question: -float(question.timesteps[0]))

    def _listen(self, question: Question) -> None:
        t = float(question.timesteps[0])
        index = min(int(t / _MAX_TIMESTEP * len(self._sizes)), len(self._sizes) - 1)
        kept, size = self._kept[index], self._sizes[index]
        self._seen[index] += 1
        place = len(kept) if len(kept) < size else self._random.randrange(self._seen[index])
        if place < size:
            kept[place : place + 1] = [question.mapped(lambda tensor: tensor.detach().clone())]


def record_questions(
    draw: Callable[[Denoiser], object], denoiser: Denoiser, num_questions: int, seed: int = 0
) -> list[Question]:
    """Return questions from denoising runs.

    Args:
        draw: Draws pictures through the denoiser that it is given, as many as the caller thinks representative.
        denoiser: The reference that answers, in its own precision.
        num_questions: How many to keep at most.
        seed: Of the choice among them.

    Returns:
        Whole questions, noisiest first.
    """
    recorder = RecordingDenoiser(denoiser, num_questions, seed=seed)
    draw(recorder)
    return recorder.questions()


def as_samples(questions: Iterable[Question]) -> list[dict[str, object]]:
    """Return questions as inputs of a converted U-Net: arrays by name."""
    from vega_diffusion.inference.backends.openvino_graphs import as_array

    return [
        {
            name: as_array(tensor if tensor.is_floating_point() else tensor.float())
            for name, tensor in question.named().items()
        }
        for question in questions
    ]


def decoder_samples(latents: Iterable[Tensor]) -> list[dict[str, object]]:
    """Return latents `[1, C, h, w]` as inputs of a converted decoder: of large ones the middle."""
    from vega_diffusion.inference.backends.openvino_graphs import as_array

    def middle(picture: Tensor) -> Tensor:
        height, width = picture.shape[-2:]
        top, left = max(0, height - _CELLS) // 2, max(0, width - _CELLS) // 2
        return picture[..., top : top + _CELLS, left : left + _CELLS].contiguous()

    return [{"latents": as_array(middle(picture))} for picture in latents]
