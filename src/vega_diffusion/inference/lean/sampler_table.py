"""A sampler as numbers: every state of a run is a fixed sum of the first noise, the U-Net's answers and added noise.

All of diffusers' samplers that we offer are linear in these, whatever they remember between steps; so the whole of one
is a triangle of coefficients. What makes tables, with diffusers' own schedulers, is `tables.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]


@dataclass(frozen=True)
class SamplerTable:
    """One sampler at one number of steps, N U-Net evaluations and M draws of noise.

    Attributes:
        timesteps: `[N]`, what the U-Net is told.
        input_scales: `[N]`, what latents are multiplied by before the U-Net sees them.
        initial_sigma: What the first noise is multiplied by.
        of_start: `[N]`, coefficients of the first latents in those after each evaluation.
        of_answers: `[N, N]`, of the U-Net's answers: zero above the diagonal.
        of_noise: `[N, M]`, of the added noise.
        num_draws: `[N]`, how many draws of noise are made by the end of each evaluation.
    """

    timesteps: Array
    input_scales: Array
    initial_sigma: float
    of_start: Array
    of_answers: Array
    of_noise: Array
    num_draws: Array

    @property
    def num_evaluations(self) -> int:
        """N."""
        return len(self.timesteps)

    def state(self, step: int, start: Array, answers: list[Array], noise: list[Array]) -> Array:
        """Return the latents after an evaluation, float32.

        Args:
            step: Which evaluation, from 0.
            start: The first latents `[1, C, h, w]`.
            answers: Of evaluations 0 to `step`.
            noise: At least the draws that are made by then.
        """
        total = self.of_start[step] * start
        for coefficient, answer in zip(self.of_answers[step], answers, strict=False):
            if coefficient:
                total = total + coefficient * answer
        for coefficient, drawn in zip(self.of_noise[step], noise, strict=False):
            if coefficient:
                total = total + coefficient * drawn
        return total.astype(numpy.float32)

    def save(self, path: Path) -> None:
        """Write the numbers as an `.npz` file."""
        numpy.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> SamplerTable:
        """Read what `save` wrote."""
        with numpy.load(path, allow_pickle=False) as stored:
            read: dict[str, Any] = {field.name: stored[field.name] for field in fields(cls)}
        read["initial_sigma"] = float(read["initial_sigma"])
        return cls(**read)
