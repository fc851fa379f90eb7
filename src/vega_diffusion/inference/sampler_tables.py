"""Tables of samplers, by asking diffusers' schedulers: one run over unit vectors gives every coefficient.

What a table is, and how it is used without torch, is `lean/sampler_table.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from vega_diffusion.errors import Unavailable
from vega_diffusion.inference.lean.sampler_table import SamplerTable
from vega_diffusion.inference.samplers import make_scheduler, set_steps

_TOLERANCE = 1e-4  # of the largest state, for a run that the table has not seen
_MAX_DRAWS = 4


@dataclass(frozen=True)
class _Run:
    """What a scheduler did: states `[N, D]`, the draws of noise `[M, D]`, and how many of them by each step."""

    states: Tensor
    noise: Tensor
    num_draws: list[int]


def make_table(sampler: str, config: Mapping[str, Any], num_steps: int) -> SamplerTable:
    """Return a sampler's table for a model's noise schedule.

    Args:
        sampler: One of `SAMPLERS`.
        config: The model's `scheduler_config.json`.
        num_steps: Sampler steps.

    Raises:
        InvalidValue: The sampler does not suit the schedule or the number of steps.
        Unavailable: The scheduler's steps are no sums of what it is given, as with thresholding.
    """
    scheduler = _ready(sampler, config, num_steps)
    count = len(scheduler.timesteps)
    width = max(32, 2 * count + 2)
    unit = torch.eye(width)
    silent = _run(_ready(sampler, config, num_steps), torch.zeros(width), torch.zeros(count, width))
    loud = _run(_ready(sampler, config, num_steps), unit[0], unit[1 : count + 1])
    linear = loud.states.double() - silent.states.double()
    of_noise = torch.zeros(count, 0, dtype=torch.float64)
    if len(silent.noise):
        of_noise = torch.linalg.lstsq(silent.noise.double().T, silent.states.double().T).solution.T
    table = SamplerTable(
        timesteps=scheduler.timesteps.double().numpy(),
        input_scales=_input_scales(scheduler),
        initial_sigma=float(scheduler.init_noise_sigma),
        of_start=linear[:, 0].numpy(),
        of_answers=linear[:, 1 : count + 1].numpy(),
        of_noise=_cleaned(of_noise.numpy()),
        num_draws=numpy.array(silent.num_draws),
    )
    _check(table, _ready(sampler, config, num_steps), sampler)
    return table


def _ready(sampler: str, config: Mapping[str, Any], num_steps: int) -> Any:
    scheduler = make_scheduler(sampler, config)
    set_steps(scheduler, sampler, num_steps, "cpu")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


@torch.no_grad()
def _run(scheduler: Any, start: Tensor, answers: Tensor, seed: int = 0) -> _Run:
    """Run a scheduler over given answers."""
    generator = torch.Generator().manual_seed(seed)
    takes = "generator" in inspect.signature(scheduler.step).parameters
    x_t, states, noise, num_draws = start.reshape(1, 1, 1, -1).clone(), [], [], []
    for t, answer in zip(scheduler.timesteps, answers, strict=True):
        scheduler.scale_model_input(x_t, t)
        before = generator.get_state()
        extra = {"generator": [generator]} if takes else {}
        x_t = scheduler.step(answer.reshape(x_t.shape), t, x_t, **extra).prev_sample
        noise += _draws_between(before, generator.get_state(), x_t.shape)
        num_draws.append(len(noise))
        states.append(x_t.flatten())
    drawn = torch.stack(noise) if noise else torch.zeros(0, len(start))
    return _Run(torch.stack(states), drawn, num_draws)


def _draws_between(before: Tensor, after: Tensor, shape: torch.Size) -> list[Tensor]:
    """Return the noise that brought a generator from one state to another."""
    again, drawn = torch.Generator(), []
    again.set_state(before)
    while not torch.equal(again.get_state(), after):
        if len(drawn) == _MAX_DRAWS:
            raise Unavailable("sampler: draws noise of another shape; allowed: normal noise of the latents' shape")
        drawn.append(torch.randn(shape, generator=again).flatten())
    return drawn


def _input_scales(scheduler: Any) -> numpy.ndarray[Any, Any]:
    """Return what the scheduler multiplies latents by, evaluation by evaluation, over a run of its own."""
    scales, x_t = [], torch.ones(1, 1, 1, 32)
    for t in scheduler.timesteps:
        scales.append(float(scheduler.scale_model_input(torch.ones_like(x_t), t).mean()))
        extra = {"generator": torch.Generator()} if "generator" in inspect.signature(scheduler.step).parameters else {}
        scheduler.step(torch.zeros_like(x_t), t, x_t, **extra)
    return numpy.array(scales)


def _cleaned(coefficients: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """Return coefficients without what rounding left where there is nothing."""
    return numpy.where(numpy.abs(coefficients) < 1e-6, 0.0, coefficients)


def _check(table: SamplerTable, scheduler: Any, sampler: str) -> None:
    """Compare a table with a run of random answers.

    Raises:
        Unavailable: They differ.
    """
    count, width, numbers = table.num_evaluations, 64, torch.Generator().manual_seed(1)
    start, answers = torch.randn(width, generator=numbers), torch.randn(count, width, generator=numbers)
    run = _run(scheduler, start * table.initial_sigma, answers, seed=2)
    rows, noise = [answer.numpy() for answer in answers], [one.numpy() for one in run.noise]
    for step, state in enumerate(run.states):
        own = table.state(step, start.numpy() * table.initial_sigma, rows[: step + 1], noise)
        if numpy.abs(own - state.numpy()).max() > _TOLERANCE * max(1.0, float(state.abs().max())):
            raise Unavailable(
                f"sampler: {sampler!r} is not linear with this model's scheduler config; allowed: no thresholding and "
                "no clipping of samples; it is drawn with torch"
            )
