"""Samplers: one table for all names, quiet, and honest about what they cannot do."""

from __future__ import annotations

import logging

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference import samplers
from vega_diffusion.specs.presets import preset
from vega_diffusion.specs.request import SAMPLERS

CONFIG = preset("vega").schedule.to_config() | {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.1"}


def test_the_table_holds_exactly_the_names_of_the_request() -> None:
    assert set(samplers._TABLE) == set(SAMPLERS)
    assert len({samplers.public_name(name) for name in SAMPLERS}) == len(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_follows_the_models_schedule_and_says_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scheduler = samplers.make_scheduler(name, CONFIG)
    assert not caplog.records
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "steps_offset"):
        assert scheduler.config[key] == CONFIG[key]
    samplers.set_steps(scheduler, name, 4, "cpu")
    assert len(scheduler.timesteps) in (4, 7)


def test_names_mean_what_others_mean_by_them() -> None:
    karras = samplers.make_scheduler("dpmpp_2m_karras", CONFIG)
    assert isinstance(karras, DPMSolverMultistepScheduler)
    assert (karras.config["use_karras_sigmas"], karras.config["algorithm_type"]) == (True, "dpmsolver++")
    plain = samplers.make_scheduler("dpmpp_2m", CONFIG)
    assert plain.config.use_karras_sigmas is False
    stochastic = samplers.make_scheduler("dpmpp_2m_sde_karras", CONFIG)
    assert stochastic.config.algorithm_type == "sde-dpmsolver++"
    assert isinstance(samplers.make_scheduler("ddim", CONFIG), DDIMScheduler)
    assert isinstance(samplers.make_scheduler("euler", CONFIG), EulerDiscreteScheduler)


def test_refusals() -> None:
    with pytest.raises(InvalidValue, match="sampler.*best.*euler"):
        samplers.make_scheduler("best", CONFIG)
    with pytest.raises(InvalidValue, match="num_steps.*51.*at most 50 with sampler lcm"):
        samplers.set_steps(samplers.make_scheduler("lcm", CONFIG), "lcm", 51, "cpu")
    with pytest.raises(InvalidValue, match="heun.*zero terminal SNR"):
        samplers.make_scheduler("heun", CONFIG | {"rescale_betas_zero_snr": True})
