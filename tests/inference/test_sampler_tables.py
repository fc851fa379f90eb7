"""A sampler's table gives the states of diffusers' scheduler: every sampler, kind of prediction and number of steps."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from vega_diffusion.errors import InvalidValue, Unavailable
from vega_diffusion.inference.lean.sampler_table import SamplerTable
from vega_diffusion.inference.sampler_tables import make_table
from vega_diffusion.inference.samplers import make_scheduler, set_steps
from vega_diffusion.specs.request import SAMPLERS

SDXL: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
    "timestep_spacing": "leading",
}
SHAPE = (1, 4, 6, 5)


def run_of_diffusers(sampler: str, config: dict[str, Any], num_steps: int) -> tuple[Any, list[torch.Tensor], list[Any]]:
    """Return the scheduler, its states and the answers it was given: what a bent U-Net says about its input."""
    scheduler = make_scheduler(sampler, config)
    set_steps(scheduler, sampler, num_steps, "cpu")
    generator = torch.Generator().manual_seed(3)
    x_t = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    states, answers = [x_t], []
    takes = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes else {}
    for t in scheduler.timesteps:
        answer = torch.tanh(scheduler.scale_model_input(x_t, t)) + 0.1 * torch.cos(7 * x_t)
        answers.append(answer.numpy())
        x_t = scheduler.step(answer, t, x_t, **extra).prev_sample
        states.append(x_t)
    return scheduler, states, answers


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_steps", [1, 4, 25])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_states_are_the_schedulers(sampler: str, num_steps: int, prediction: str, tmp_path: Path) -> None:
    config = SDXL | {"prediction_type": prediction}
    scheduler, states, answers = run_of_diffusers(sampler, config, num_steps)
    make_table(sampler, config, num_steps).save(tmp_path / "table.npz")
    table = SamplerTable.load(tmp_path / "table.npz")
    numpy.testing.assert_array_equal(table.timesteps, scheduler.timesteps.double().numpy())
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(SHAPE, generator=generator).numpy() * table.initial_sigma
    noise: list[Any] = []
    for step, expected in enumerate(states[1:]):
        while len(noise) < table.num_draws[step]:
            noise.append(torch.randn(SHAPE, generator=generator).numpy())
        state = table.state(step, start, answers[: step + 1], noise)
        numpy.testing.assert_allclose(state, expected.numpy(), atol=5e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inputs_are_scaled_as_the_scheduler_scales_them(sampler: str) -> None:
    table, scheduler = make_table(sampler, SDXL, 8), make_scheduler(sampler, SDXL)
    set_steps(scheduler, sampler, 8, "cpu")
    x_t = torch.randn(SHAPE)
    for step, t in enumerate(scheduler.timesteps):
        expected = scheduler.scale_model_input(x_t, t)
        torch.testing.assert_close(x_t * table.input_scales[step], expected, rtol=1e-5, atol=1e-6, check_dtype=False)
        scheduler.step(torch.zeros_like(x_t), t, x_t)


def test_later_answers_have_no_part_in_a_state() -> None:
    table = make_table("dpmpp_2m", SDXL, 9)
    assert not numpy.triu(table.of_answers, 1).any()
    assert table.num_evaluations == 9
    assert make_table("heun", SDXL, 9).num_evaluations == 17


def test_a_scheduler_that_clips_has_no_table() -> None:
    with pytest.raises(Unavailable, match="'ddim' is not linear with this model's scheduler config"):
        make_table("ddim", SDXL | {"clip_sample": True}, 10)
    with pytest.raises(InvalidValue, match="num_steps"):
        make_table("lcm", SDXL, 51)
