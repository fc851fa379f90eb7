"""Plans: parameters as built, work as measured elsewhere, memory as torch counts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vega_diffusion.models.measure import count_parameters, unet_macs
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import preset
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.planner import plan_run

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = ["steps=10", "lr_schedule.warmup_steps=1", "micro_batch_size=4", "batch_size=8"]


@pytest.fixture(scope="module")
def plan():
    recipe = TrainRecipe.read(RECIPES / "mini-sdxl-denoise-cpu.toml", SHORT)
    return plan_run(recipe, torch.device("cpu"))


def test_parameters_are_those_of_the_networks(plan):
    spec = preset("mini-sdxl")
    assert spec.text_encoder_2 is not None
    with torch.device("meta"):
        trained = count_parameters(build_unet(spec.unet))
        frozen = count_parameters(build_text_encoder(spec.text_encoder))
        frozen += count_parameters(build_text_encoder(spec.text_encoder_2))
    assert (plan.trained_parameters, plan.frozen_parameters) == (trained, frozen)
    assert (plan.samples, plan.micro_batches_per_step) == (80, 2)


def test_work_is_nearly_three_times_the_forward_pass(plan):
    macs = unet_macs(preset("mini-sdxl").unet, 128, 128)
    # Forwards once, backwards twice, but for gradients of inputs that nothing learns from (latents, frozen text).
    assert 0.9 * 6 * macs / 1e9 < plan.gflop_per_sample < 6 * macs / 1e9


def test_memory_adds_up(plan):
    assert plan.weights_gib == pytest.approx(4 * (plan.trained_parameters + plan.frozen_parameters) / 2**30)
    assert plan.optimizer_gib == pytest.approx(4 * 4 * plan.trained_parameters / 2**30)
    assert plan.total_gib == pytest.approx(plan.weights_gib + plan.optimizer_gib + plan.activations_gib)
    assert 0 < plan.seconds_estimate < 3600


def test_activations_grow_with_the_micro_batch_alone():
    recipe = RECIPES / "vega-mini-denoise-cpu.toml"
    small, large, many = (
        plan_run(TrainRecipe.read(recipe, changes), torch.device("cpu"))
        for changes in (
            ["micro_batch_size=1", "batch_size=4"],
            ["micro_batch_size=4", "batch_size=4"],
            ["micro_batch_size=1", "batch_size=8"],
        )
    )
    assert large.activations_gib == pytest.approx(4 * small.activations_gib, rel=1e-3)
    assert many.activations_gib == small.activations_gib
    assert large.weights_gib == small.weights_gib
