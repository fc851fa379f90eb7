"""Activation checkpointing by blocks: the same gradients for less memory, and the cheapest choice that fits."""

from __future__ import annotations

import pytest
import torch

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.measure import example_inputs
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import KOALA_700M, VEGA, VEGA_MINI
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training import checkpointing
from vega_diffusion.training.checkpointing import BlockCost, blocks_of, choose, enable, resolved
from vega_diffusion.training.planner import needed_without_checkpointing, plan_run

COSTS = {
    "down_blocks.0": BlockCost(10.0, 5.0),
    "down_blocks.1": BlockCost(6.0, 1.0),
    "up_blocks.0": BlockCost(5.0, 2.0),
    "up_blocks.1": BlockCost(1.0, 0.1),
}

pytestmark = pytest.mark.usefixtures("speed_measured_once")


def recipe(**changes: object) -> TrainRecipe:
    data = {
        "model": {"base": "vega-mini", "train": ["unet"]},
        "data": {"kind": "scene_latents"},
        "objective": {"kind": "denoising"},
        "steps": 2,
        "batch_size": 4,
        "micro_batch_size": 4,
    }
    return TrainRecipe.from_dict(data | changes)


@pytest.mark.parametrize(
    ("excess", "blocks"),
    [
        (0.0, ()),
        (0.5, ("up_blocks.1",)),
        (6.0, ("down_blocks.1",)),
        (6.5, ("down_blocks.1", "up_blocks.1")),
        (11.0, ("down_blocks.1", "up_blocks.0")),
        (22.0, tuple(COSTS)),
        (99.0, tuple(COSTS)),  # more than all can save: what can be saved is saved
    ],
)
def test_the_least_work_that_saves_enough_is_chosen(excess: float, blocks: tuple[str, ...]):
    assert choose(COSTS, excess) == blocks


def test_blocks_are_those_of_the_architecture():
    with torch.device("meta"):
        assert len(blocks_of(build_unet(VEGA.unet))) == 7
        assert "mid_block" not in blocks_of(build_unet(KOALA_700M.unet))
        with pytest.raises(InvalidValue, match="activation_checkpointing: 'up_blocks.9' .* blocks: down_blocks.0"):
            enable(build_unet(VEGA_MINI.unet), ("up_blocks.9",))


@pytest.mark.parametrize("chosen", [True, ("up_blocks.0", "mid_block"), False])
def test_gradients_are_the_same(chosen):
    gradients = []
    for blocks in (False, chosen):
        torch.manual_seed(0)
        unet = build_unet(VEGA_MINI.unet).train()
        enable(unet, blocks)
        torch.manual_seed(1)
        inputs = example_inputs(VEGA_MINI.unet, 16, 16, 7)
        inputs |= {name: torch.randn_like(inputs[name]) for name in ("sample", "encoder_hidden_states")}
        unet(**inputs).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.slow
def test_what_blocks_save_is_what_a_plan_then_counts():
    total, costs = needed_without_checkpointing(recipe(), torch.device("cpu"))
    plain = plan_run(recipe(), torch.device("cpu"))
    assert total == pytest.approx(plain.total_gib * 2**30)
    names = ("up_blocks.0", "up_blocks.1")
    less = plan_run(recipe(activation_checkpointing=list(names)), torch.device("cpu"))
    saved = sum(costs[name].saved_bytes for name in names)
    assert saved > 0.05 * plain.activations_gib * 2**30
    assert plain.activations_gib - less.activations_gib == pytest.approx(saved / 2**30, rel=0.02)
    again = sum(costs[name].flops for name in names)
    assert less.gflop_per_sample - plain.gflop_per_sample == pytest.approx(again / 4 / 1e9, rel=0.02)


def test_auto_takes_what_memory_asks_for(monkeypatch: pytest.MonkeyPatch):
    asked = recipe(activation_checkpointing="auto")
    device = torch.device("cpu")
    for free, blocks in ((1000, False), (100, ("down_blocks.1",)), (1, tuple(COSTS))):
        monkeypatch.setattr(checkpointing, "free_bytes", lambda device, free=free: free)
        found = resolved(asked, device, lambda recipe: (96.0, COSTS))
        assert found.activation_checkpointing == blocks
    assert resolved(recipe(), device, lambda recipe: (1e30, COSTS)).activation_checkpointing is False
    assert asked.digest() == recipe().digest()  # it moves no weight
