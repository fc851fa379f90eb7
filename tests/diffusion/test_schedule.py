"""The noise schedule against diffusers' schedulers and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from vega_diffusion.diffusion.schedule import NoiseSchedule, linear, scaled_linear, squared_cosine

SDXL = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CASES = {
    "scaled_linear": (lambda zero: scaled_linear(zero_terminal_snr=zero), SDXL),
    "linear": (lambda zero: linear(zero_terminal_snr=zero), {"beta_schedule": "linear"}),
    "squared_cosine": (lambda zero: squared_cosine(zero_terminal_snr=zero), {"beta_schedule": "squaredcos_cap_v2"}),
}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", list(CASES))
def test_tables_are_those_of_diffusers(name, zero):
    make, config = CASES[name]
    reference = DDPMScheduler(**config, rescale_betas_zero_snr=zero).alphas_cumprod
    torch.testing.assert_close(make(zero).alphas_cumprod, reference, rtol=2e-4, atol=1e-6)


def test_noising_is_that_of_diffusers():
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    theirs: Any = DDPMScheduler(**SDXL)
    reference = theirs.add_noise(x0, noise, t)
    torch.testing.assert_close(scaled_linear().add_noise(x0, noise, t), reference)


def test_noising_keeps_variance_and_dtype():
    schedule, t = scaled_linear(), torch.arange(0, 1000, 111)
    signal, sigma = schedule.coefficients(t, like=torch.zeros(len(t), 1, dtype=torch.float64))
    torch.testing.assert_close(signal**2 + sigma**2, torch.ones(len(t), 1, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    x0 = torch.zeros(2, 4, 2, 2, dtype=torch.bfloat16)
    assert schedule.add_noise(x0, x0, torch.tensor([1, 2])).dtype == torch.bfloat16


def test_snr_closed_form_and_zero_end():
    schedule = NoiseSchedule(torch.tensor([0.9, 0.5, 0.0]))
    assert schedule.num_timesteps == 3
    torch.testing.assert_close(schedule.snr(torch.tensor([0, 1, 2])), torch.tensor([9.0, 1.0, 0.0]))
    assert scaled_linear(zero_terminal_snr=True).snr(torch.tensor([999])).item() == 0
