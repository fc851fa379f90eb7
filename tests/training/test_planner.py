"""Plans: parameters as built, work as measured elsewhere, memory as torch counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vega_diffusion.models.measure import count_parameters, unet_macs
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import preset
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.meta_attention import fused_attention
from vega_diffusion.training.optimizer import build_optimizer
from vega_diffusion.training.planner import _said_of_optimizer, plan_run
from vega_diffusion.training.rounding import BUCKET
from vega_diffusion.training.student import Student

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = ["steps=10", "lr_schedule.warmup_steps=1", "micro_batch_size=4", "batch_size=8"]

pytestmark = pytest.mark.usefixtures("speed_measured_once")


@pytest.fixture(scope="module")
def plan():
    recipe = TrainRecipe.read(RECIPES / "vega-mini-binding-cpu.toml", SHORT)
    return plan_run(recipe, torch.device("cpu"))


def test_parameters_are_those_of_the_networks(plan):
    spec = preset("vega-mini")
    assert spec.text_encoder_2 is not None
    with torch.device("meta"):
        trained = count_parameters(build_unet(spec.unet))
        texts = [count_parameters(build_text_encoder(one)) for one in (spec.text_encoder, spec.text_encoder_2)]
    # Captions and latents are encoded before the run: what encoded them is gone.
    assert (plan.trained_parameters, plan.frozen_parameters) == (trained, 0)
    assert (plan.samples, plan.micro_batches_per_step) == (80, 2)
    joint = plan_run(TrainRecipe.read(RECIPES / "vega-mini-joint-cpu.toml", SHORT), torch.device("cpu"))
    unread = joint.frozen_parameters  # of the first encoder, the last layer
    assert joint.trained_parameters + unread == trained + sum(texts)


def test_work_is_nearly_three_times_the_forward_pass(plan):
    macs = unet_macs(preset("vega-mini").unet, 128, 128)
    # Forwards once, backwards twice, but for gradients of inputs that nothing learns from (latents, frozen text).
    assert 0.85 * 6 * macs / 1e9 < plan.gflop_per_sample < 6 * macs / 1e9


def test_memory_adds_up(plan):
    # In bf16, autocast keeps half copies beside the weights.
    assert plan.weights_gib == pytest.approx((6 * plan.trained_parameters + 4 * plan.frozen_parameters) / 2**30)
    assert plan.optimizer_gib == pytest.approx(4 * 4 * plan.trained_parameters / 2**30)
    assert plan.total_gib == pytest.approx(plan.weights_gib + plan.optimizer_gib + plan.activations_gib)
    assert 0 < plan.seconds_estimate < 6 * 3600  # an hour at most on an idle machine


@pytest.mark.parametrize(
    ("kind", "bf16"), [("adamw", False), ("adamw_8bit", True), ("adafactor", False), ("prodigy", True)]
)
def test_a_plan_counts_what_the_optimizer_really_holds(kind, bf16):
    """The moments of vega-mini's U-Net after a step, gradients and average, in fp32 or with bf16 weights."""
    changes = [f"optimizer={{kind='{kind}'}}", "micro_batch_size=1", "batch_size=1"]
    if bf16:
        changes += ["model.dtype=bf16", "optimizer.stochastic_rounding=true"]
    recipe = TrainRecipe.read(RECIPES / "vega-mini-denoise-cpu.toml", changes)
    unet = build_unet(preset("vega-mini").unet)
    plain = recipe.optimizer.model_copy(update={"stochastic_rounding": False})
    optimizer = build_optimizer(plain, Student({"unet": unet}))
    for parameter in unet.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(
        value.nbytes
        for values in optimizer.state.values()
        for key, value in values.items()
        if isinstance(value, Tensor) and value.ndim and not key.startswith("qmap")
    )
    plan = plan_run(recipe, torch.device("cpu"))
    trained, size = count_parameters(unet), 2 if bf16 else 4
    if bf16:
        held += 8 * (trained if kind == "prodigy" else min(trained, BUCKET))  # copies in fp32
    assert plan.trained_parameters == trained
    assert plan.weights_gib == pytest.approx(size * trained / 2**30)
    assert plan.optimizer_gib == pytest.approx((held + (size + 4) * trained) / 2**30)
    assert f"optimizer   {kind}: {held / trained:.2f} bytes a trained parameter" in str(plan)
    assert ("bf16 weights rounded by chance" in str(plan)) == bf16


def test_a_plan_says_which_package_is_not_here(monkeypatch):
    monkeypatch.setattr("vega_diffusion.training.optimizer.find_spec", lambda name: None)
    recipe = TrainRecipe.read(RECIPES / "vega-mini-denoise-cpu.toml", ["optimizer={kind='adamw_8bit'}"])
    lacks = "not here: it needs bitsandbytes, pip install 'vega-diffusion[optimizers]'"
    assert _said_of_optimizer(recipe, 21, 10) == f"adamw_8bit: 2.10 bytes a trained parameter; {lacks}"


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


def test_a_cpu_does_not_get_back_what_is_freed_between_tensors_that_stay(monkeypatch):
    recipe = TrainRecipe.read(RECIPES / "vega-mini-denoise-cpu.toml", ["mixed_precision=no"])
    monkeypatch.setattr("vega_diffusion.training.planner.matmul_speed", lambda device, precision: 1e12)
    here, there = (plan_run(recipe, torch.device(device)) for device in ("cpu", "cuda"))
    assert here.activations_gib == pytest.approx(1.5 * there.activations_gib)
    assert (here.weights_gib, here.optimizer_gib) == (there.weights_gib, there.optimizer_gib)


@pytest.mark.slow
def test_a_distillation_counts_the_teachers_that_are_there_together(plan):
    recipe = TrainRecipe.read(RECIPES / "vega-mini-distill-cpu.toml", SHORT)
    taught, alone = plan_run(recipe, torch.device("cpu")), plan
    with torch.device("meta"):
        teacher = count_parameters(build_unet(preset("mini-sdxl").unet))
    assert taught.trained_parameters == alone.trained_parameters
    assert taught.frozen_parameters == alone.frozen_parameters + teacher
    assert taught.weights_gib == pytest.approx(alone.weights_gib + 2 * teacher / 2**30)  # held in bf16
    forward = 2 * unet_macs(preset("mini-sdxl").unet, 128, 128) / 1e9
    assert taught.gflop_per_sample == pytest.approx(alone.gflop_per_sample + forward, rel=0.01)
    # Two in succession are never in memory together, two at once are. A teacher of the student's size will do.
    one = recipe.objective.teachers[0].model_dump() | {"base": "vega-mini", "weights": "vega-mini", "map": "same"}  # type: ignore[union-attr]
    for first, second, there in (({"stop_step": 5}, {"start_step": 5}, 1), ({}, {}, 2)):
        data = recipe.model_dump(mode="json")
        data["objective"]["teachers"] = [one | first, one | second | {"name": "other"}]
        found = plan_run(TrainRecipe.from_dict(data), torch.device("cpu"))
        assert found.frozen_parameters == alone.frozen_parameters + there * alone.trained_parameters
    # Fixed samples: what it predicts was computed before.
    data["objective"] |= {"teachers": [one], "fixed_samples": 64, "feature_level": None, "feature_weight": 0.0}
    found = plan_run(TrainRecipe.from_dict(data), torch.device("cpu"))
    assert found.frozen_parameters == alone.frozen_parameters
    assert found.gflop_per_sample == pytest.approx(alone.gflop_per_sample, rel=0.01)
    data["objective"] |= {"feature_level": "module", "feature_weight": 0.1}
    states = plan_run(TrainRecipe.from_dict(data), torch.device("cpu"))
    assert states.gflop_per_sample == found.gflop_per_sample
    # The 26 modules' outputs of one sample, in fp16.
    assert states.cache_mib_per_picture - found.cache_mib_per_picture == pytest.approx(204 / 1024)


def test_activation_checkpointing_trades_work_for_memory(plan):
    recipe = TrainRecipe.read(RECIPES / "vega-mini-binding-cpu.toml", [*SHORT, "activation_checkpointing=true"])
    frugal = plan_run(recipe, torch.device("cpu"))
    assert frugal.activations_gib < 0.4 * plan.activations_gib
    assert 1.2 < frugal.gflop_per_sample / plan.gflop_per_sample < 1.4
    assert frugal.weights_gib == plan.weights_gib


@pytest.mark.slow
def test_a_full_size_plan_says_which_cards_it_fits():
    plan = plan_run(TrainRecipe.read(RECIPES / "vega-distill-sdxl.toml"), torch.device("cpu"))
    assert (plan.trained_parameters, plan.frozen_parameters) == (745_225_604, 2_567_463_684)
    assert plan.samples == 69_120_000
    assert plan.weights_gib == pytest.approx((6 * 745_225_604 + 2 * 2_567_463_684) / 2**30)
    assert [card.memory_gb for card in plan.cards] == [24, 48, 80, 141]
    fitting = [card for card in plan.cards if card.micro_batch_size is not None]
    assert len(fitting) >= 3
    for card in fitting:
        assert card.total_gib is not None
        assert card.total_gib * 2**30 < card.memory_gb * 1e9
    sizes = [card.micro_batch_size or 0 for card in plan.cards]
    assert sizes == sorted(sizes)
    latents, caption = 2 * 4 * 128 * 128 * 2, (77 * 2048 + 1280) * 2
    assert plan.cache_mib_per_picture == pytest.approx((latents + caption) / 2**20)
    text = str(plan)
    assert "fits: micro_batch_size" in text
    assert "MiB on disk a picture" in text
    assert plan.to_dict()["cards"][0]["memory_gb"] == 24


def kept(device: str, attention: Any) -> tuple[int, list[torch.Size]]:
    """Return the bytes that an attention keeps for the way back, and the shapes of its output and gradients."""
    inputs = [torch.zeros(2, 3, 128, 8, device=device, requires_grad=True) for _ in range(3)]
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = attention(*inputs)
    out.sum().backward()
    return sum(seen.values()), [out.shape, *(one.grad.shape for one in inputs if one.grad is not None)]


def test_attention_keeps_in_a_plan_what_a_fused_kernel_keeps():
    plain = torch.nn.functional.scaled_dot_product_attention
    with fused_attention():
        planned = torch.nn.functional.scaled_dot_product_attention
    assert torch.nn.functional.scaled_dot_product_attention is plain
    fused, shapes = kept("cpu", plain)
    assert kept("meta", planned) == (fused, shapes)
    assert len(shapes) == 4
    assert kept("meta", plain)[0] > 2 * fused


def test_a_plan_counts_the_attention_that_will_run(plan):
    """On a CPU in bf16, the recipe's, attention is plain products, which keep their scores; on a GPU it is fused."""
    recipe = TrainRecipe.read(RECIPES / "vega-mini-binding-cpu.toml", [*SHORT, "mixed_precision=no"])
    plain = plan_run(recipe, torch.device("cpu"))
    assert plan.gflop_per_sample == plain.gflop_per_sample
    assert plan.activations_gib > 0.61 * plain.activations_gib  # 0.6 of it were they the same
