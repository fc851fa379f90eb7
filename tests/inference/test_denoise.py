"""Guidance that is kept after its interval: closed forms with predictions that are known, and the embedded model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vega_diffusion.inference.backends.protocol import InUse, Question
from vega_diffusion.inference.denoise import Conditioning, Guidance, ImageRun, denoise
from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.samplers import make_scheduler, set_steps
from vega_diffusion.specs.profile import StepPlan
from vega_diffusion.specs.request import GenerateRequest

STEPS = 10
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}


class SaysItsText:
    """A denoiser that predicts a share of its input and the mean of its text: texts make a constant difference."""

    in_use = InUse("torch", "fp32", False, ("cpu",))

    def __init__(self) -> None:
        self.rows = 0

    def predict(self, question: Question) -> Tensor:
        self.rows += len(question.x_t)
        return 0.3 * question.x_t + question.prompt_embeds.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    def full(self, question: Question) -> tuple[Tensor, Tensor]:
        raise AssertionError("no step is shallow")

    def shallow(self, question: Question, deep: Tensor) -> Tensor:
        raise AssertionError("no step is shallow")

    def close(self) -> None:
        """Nothing is held."""


def text(value: float) -> Conditioning:
    return Conditioning(torch.full((1, 3, 4), value), torch.zeros(1, 2), torch.zeros(1, 6))


def drawn(interval: tuple[float, float], kept: float, scale: float = 4.0) -> tuple[Tensor, int]:
    """Return the latents of ten steps, and how many rows they asked about."""
    scheduler = make_scheduler("euler", SCHEDULE)
    set_steps(scheduler, "euler", STEPS, "cpu")
    start = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    plan = StepPlan.of(STEPS, interval, 1, True)
    guidance, denoiser = Guidance(scale, text(-0.1), kept), SaysItsText()
    run = ImageRun(scheduler, scheduler.timesteps, start, text(0.2), guidance, [torch.Generator()], plan)
    return denoise(denoiser, run), denoiser.rows


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.0, 0.8), (0.3, 0.6)])
def test_a_difference_that_never_changes_is_kept_whole(interval: tuple[float, float]) -> None:
    """Then what is kept in full is guidance at every step from the interval's begin, for the rows of the interval."""
    kept, rows = drawn(interval, 1.0)
    whole, more = drawn((interval[0], 1.0), 0.0)
    assert torch.allclose(kept, whole, rtol=1e-5, atol=1e-5)
    assert rows == STEPS + round((interval[1] - interval[0]) * STEPS) < more


def test_a_share_of_it_is_guidance_of_a_smaller_scale() -> None:
    """Prediction after the interval: cond + kept (scale - 1) difference; Euler adds predictions by its sigmas."""
    nothing, half, whole = (drawn((0.0, 0.8), kept)[0] for kept in (0.0, 0.5, 1.0))
    assert torch.allclose(half, (nothing + whole) / 2, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(nothing, whole, rtol=1e-3)


def test_kept_guidance_without_an_end_and_before_a_begin_is_none() -> None:
    assert torch.equal(drawn((0.0, 1.0), 0.7)[0], drawn((0.0, 1.0), 0.0)[0])
    assert torch.equal(drawn((0.6, 1.0), 0.7)[0], drawn((0.6, 1.0), 0.0)[0])


def test_the_embedded_model_stays_nearer_to_exact() -> None:
    engine = Engine.load("vega-mini", "cpu", "float32")
    request = GenerateRequest(prompt="two red apples on a blue background", seed=3, num_steps=10)
    ended = {"guidance_interval": (0.0, 0.8)}
    exact, without, kept = (
        next(iter(engine.latents(request.model_copy(update=update)))).flatten()
        for update in ({}, ended, ended | {"guidance_kept": 0.7})
    )
    far, near = (1 - torch.cosine_similarity(exact, one, dim=0) for one in (without, kept))
    assert 0 < near < 0.6 * far
