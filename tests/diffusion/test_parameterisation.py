"""Targets and conversions: against diffusers, and there and back."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from diffusers import DDPMScheduler

from vega_diffusion.diffusion.parameterisation import (
    PredictionType,
    convert,
    to_epsilon,
    to_x0,
    training_target,
)
from vega_diffusion.diffusion.schedule import scaled_linear

TYPES = get_args(PredictionType)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    schedule, t = scaled_linear(), torch.tensor([0, 1, 250, 700, 999])
    x0, noise = torch.randn(5, 4, 3, 3, dtype=torch.float64), torch.randn(5, 4, 3, 3, dtype=torch.float64)
    return schedule, x0, noise, t, schedule.add_noise(x0, noise, t)


def test_there_are_three_types():
    assert TYPES == ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("kind", TYPES)
def test_a_perfect_prediction_gives_back_x0_and_noise(kind, parts):
    schedule, x0, noise, t, x_t = parts
    target = training_target(kind, schedule, x0, noise, t)
    torch.testing.assert_close(to_x0(kind, schedule, target, x_t, t), x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_epsilon(kind, schedule, target, x_t, t), noise, rtol=1e-3, atol=1e-3)


def test_velocity_is_that_of_diffusers(parts):
    schedule, x0, noise, t, _ = parts
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    expected = reference.get_velocity(x0.float(), noise.float(), t)
    actual = training_target("v_prediction", schedule, x0.float(), noise.float(), t)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", TYPES)
def test_implied_x0_is_that_of_diffusers(kind, parts):
    schedule, _, noise, t, x_t = parts
    reference: Any = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, clip_sample=False
    )
    for row in range(1, 5):
        one = slice(row, row + 1)
        prediction = noise[one].float() * 0.3
        expected = reference.step(prediction, int(t[row]), x_t[one].float()).pred_original_sample
        actual = to_x0(kind, schedule, prediction, x_t[one].float(), t[one])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", TYPES)
@pytest.mark.parametrize("wanted", TYPES)
def test_a_perfect_prediction_stays_perfect_in_any_other_parameterisation(given, wanted, parts):
    schedule, x0, noise, t, x_t = parts
    prediction = training_target(given, schedule, x0, noise, t)
    converted = convert(prediction, given, wanted, schedule, x_t, t)
    torch.testing.assert_close(converted, training_target(wanted, schedule, x0, noise, t), rtol=1e-3, atol=1e-3)
    back = convert(converted + 0.1, wanted, given, schedule, x_t, t)
    there = convert(back, given, wanted, schedule, x_t, t)
    torch.testing.assert_close(there, converted + 0.1, rtol=1e-3, atol=1e-3)
