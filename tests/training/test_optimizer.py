"""Every field of the optimizer spec lands in torch; learning-rate curves in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.optimizer import AdamWSpec, LrScheduleSpec
from vega_diffusion.training.optimizer import build_optimizer, lr_factor, set_learning_rate
from vega_diffusion.training.student import Student


def student(**more):
    return Student({"unet": nn.Linear(3, 2), "text_encoder": nn.Linear(2, 2)}, **more)


def test_every_field_lands_in_torch():
    values = {
        "lr": 0.3,
        "betas": (0.11, 0.22),
        "eps": 1e-3,
        "weight_decay": 0.07,
        "lr_factors": {"text_encoder": 0.5},
    }
    assert set(values) | {"kind"} == set(AdamWSpec.model_fields)
    optimizer = build_optimizer(AdamWSpec.model_validate(values), student())
    assert isinstance(optimizer, torch.optim.AdamW)
    unet, text = optimizer.param_groups
    assert (unet["lr"], text["lr"]) == (0.3, 0.15)
    for group in (unet, text):
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.11, 0.22), 1e-3, 0.07)
        assert not group["amsgrad"]
        assert not group["maximize"]
    set_learning_rate(optimizer, 0.2)
    assert (unet["lr"], text["lr"]) == (0.2, 0.1)


def test_one_step_is_adamw_by_hand():
    spec = AdamWSpec(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    linear = nn.Linear(1, 1, bias=False)
    module = Student({"unet": linear})
    weight = linear.weight
    nn.init.constant_(weight, 2.0)
    optimizer = build_optimizer(spec, module)
    weight.grad = torch.full_like(weight, 3.0)
    optimizer.step()
    # After bias correction the first step's moments are g and g squared.
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1 * 3.0 / (3.0 + 1e-3), abs=1e-6)


def test_frozen_parameters_are_not_optimised():
    module = student(freeze=["text_encoder"])
    optimizer = build_optimizer(AdamWSpec(), module)
    assert {id(one) for group in optimizer.param_groups for one in group["params"]} == {
        id(one) for one in module.get_submodule("unet").parameters()
    }


def test_factors_for_single_modules():
    module = Student({"unet": nn.Sequential(*[nn.Sequential(nn.Linear(2, 2, bias=False)) for _ in range(12)])})
    factors = {"unet": 2.0, "unet.[2-9]": 3.0, "unet.10": 4.0}
    optimizer = build_optimizer(AdamWSpec(lr=1.0, lr_factors=factors), module)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    assert [rates[id(one)] for one in module.parameters()] == [2.0] * 2 + [3.0] * 8 + [4.0, 2.0]


def test_a_factor_for_nothing_is_refused():
    with pytest.raises(InvalidValue, match=r"optimizer.lr_factors: 'unet.mid'"):
        build_optimizer(AdamWSpec(lr_factors={"unet.mid": 2.0}), student())


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_warmup_rises_linearly_to_the_peak(kind):
    spec = LrScheduleSpec(kind=kind, warmup_steps=4)
    assert [lr_factor(spec, step, 20) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant():
    assert {lr_factor(LrScheduleSpec(), step, 10) for step in range(20)} == {1.0}


def test_linear_and_cosine_fall_to_zero_at_the_end():
    linear, cosine = LrScheduleSpec(kind="linear", warmup_steps=2), LrScheduleSpec(kind="cosine", warmup_steps=2)
    for step in range(2, 11):
        progress = (step - 2) / 8
        assert lr_factor(linear, step, 10) == pytest.approx(1 - progress)
        assert lr_factor(cosine, step, 10) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)
    for spec in (linear, cosine):
        assert lr_factor(spec, 10, 10) == pytest.approx(0.0, abs=1e-12)
        assert lr_factor(spec, 99, 10) == pytest.approx(0.0, abs=1e-12)


def test_final_factor_and_decay_steps():
    spec = LrScheduleSpec(kind="cosine", final_factor=0.1, decay_steps=5)
    assert lr_factor(spec, 0, 100) == pytest.approx(1.0)
    assert lr_factor(spec, 5, 100) == pytest.approx(0.1)
    assert lr_factor(spec, 50, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("micro", [1, 4])
def test_cosine_does_not_notice_accumulation(make_trainer, recipe, micro):
    trainer = make_trainer(recipe(lr_schedule={"kind": "cosine"}, micro_batch_size=micro))
    rates = [trainer._one_step() for _ in range(6)]
    assert rates == pytest.approx([1e-2 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])
