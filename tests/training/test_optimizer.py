"""Every field of every kind lands in its library, whose steps they are; runs resume exactly; rates in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from diffusers.optimization import get_scheduler
from prodigyopt import Prodigy
from pydantic import TypeAdapter
from torch import nn
from transformers.optimization import Adafactor

from vega_diffusion.errors import InvalidValue, Unavailable
from vega_diffusion.specs.optimizer import (
    OPTIMIZER_KINDS,
    AdamWSpec,
    LrScheduleSpec,
    OptimizerSpec,
    lr_schedule_of_diffusers,
)
from vega_diffusion.training.loop import make_accelerator
from vega_diffusion.training.optimizer import (
    begin_step,
    build_optimizer,
    lr_factor,
    optimizer_bytes,
    unavailable_because,
)
from vega_diffusion.training.state import (
    RunState,
    load_newest_state,
    load_optimizer_tensors,
    optimizer_tensors,
    save_state,
)
from vega_diffusion.training.student import Student


def student(**more):
    return Student({"unet": nn.Linear(3, 2), "text_encoder": nn.Linear(2, 2)}, **more)


def module() -> Student:
    """Convolutions and a linear map, some large enough for 8 bits (4,096 values), some not, one of them all zero."""
    torch.manual_seed(5)
    unet = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 65, 1))
    last: Any = unet[2]
    nn.init.zeros_(last.bias)
    return Student({"unet": unet, "text_encoder": nn.Linear(65, 64)})


def spec_of(kind: str, **values: Any) -> Any:
    return TypeAdapter(OptimizerSpec).validate_python({"kind": kind} | values)


# Every field of every kind, none at its default; `in_group` is how the library calls what it makes of them.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adamw": (
        {"lr": 0.3, "betas": (0.11, 0.22), "eps": 1e-3, "weight_decay": 0.07},
        {"betas": (0.11, 0.22), "eps": 1e-3, "amsgrad": False, "maximize": False, "fused": True},
    ),
    "adamw_8bit": (
        {"lr": 0.3, "betas": (0.11, 0.22), "eps": 1e-3, "weight_decay": 0.07},
        {"betas": (0.11, 0.22), "eps": 1e-3},
    ),
    "adafactor": (
        {
            "lr": 0.3,
            "eps": 1e-20,
            "clip_threshold": 0.5,
            "decay_rate": -0.7,
            "beta1": 0.6,
            "weight_decay": 0.07,
            "scale_parameter": True,
        },
        {
            "eps": (1e-20, 1e-3),
            "clip_threshold": 0.5,
            "decay_rate": -0.7,
            "beta1": 0.6,
            "scale_parameter": True,
            "relative_step": False,
            "warmup_init": False,
        },
    ),
    "prodigy": (
        {
            "lr": 0.3,
            "betas": (0.11, 0.22),
            "beta3": 0.33,
            "eps": 1e-3,
            "weight_decay": 0.07,
            "decouple": False,
            "use_bias_correction": False,
            "safeguard_warmup": False,
            "d0": 1e-4,
            "d_coef": 0.5,
        },
        {
            "betas": (0.11, 0.22),
            "beta3": 0.33,
            "eps": 1e-3,
            "decouple": False,
            "use_bias_correction": False,
            "safeguard_warmup": False,
            "d0": 1e-4,
            "d": 1e-4,
            "d_coef": 0.5,
        },
    ),
}
CLASSES = {
    "adamw": torch.optim.AdamW,
    "adamw_8bit": AdamW8bit,
    "adafactor": Adafactor,
    "prodigy": Prodigy,
}


@pytest.mark.parametrize("kind", OPTIMIZER_KINDS)
def test_every_field_lands_in_the_library(kind, capsys):
    values, in_group = FIELDS[kind]
    rates = {} if kind == "prodigy" else {"lr_factors": {"text_encoder": 0.5}}
    spec = spec_of(kind, **values, **rates, weight_decays={"text_encoder.bias": 0.9})
    assert set(values) | set(rates) | {"kind", "weight_decays", "stochastic_rounding"} == set(type(spec).model_fields)
    optimizer = build_optimizer(spec, student())
    assert isinstance(optimizer, CLASSES[kind])
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.07, 0.07, 0.9][-len(groups) :]
    assert [group["lr"] for group in groups] == ([0.3, 0.3] if kind == "prodigy" else [0.3, 0.15, 0.15])
    for group in groups:
        assert {key: group[key] for key in in_group} == in_group
    begin_step(optimizer, 7, 0.2)
    assert [group["lr"] for group in groups] == ([0.2, 0.2] if kind == "prodigy" else [0.2, 0.1, 0.1])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", OPTIMIZER_KINDS)
def test_weights_move_as_the_library_moves_them(kind):
    """Two groups, other numbers than the defaults: five steps are those of the library called by hand, bit for bit."""
    values, _ = FIELDS[kind]
    values = values | ({} if kind != "prodigy" else {"lr": 1.0, "d0": 1e-3, "beta3": None, "decouple": True})
    ours, theirs = module(), module()
    optimizer = build_optimizer(spec_of(kind, **values, weight_decays={"text_encoder": 0.9}), ours)
    by_hand = {"adamw": {"fused": True}, "adafactor": {"eps": (values["eps"], 1e-3), "relative_step": False}}
    reference = CLASSES[kind](
        [
            {"params": list(theirs.get_submodule("unet").parameters())},
            {"params": list(theirs.get_submodule("text_encoder").parameters()), "weight_decay": 0.9},
        ],
        **(values | by_hand.get(kind, {})),
    )
    before = [one.detach().clone() for one in ours.parameters()]
    for step in range(5):
        lr = values["lr"] / (step + 1)
        begin_step(optimizer, step, lr)
        for group in reference.param_groups:
            group["lr"] = lr
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            two.grad = one.grad.clone()
        optimizer.step()
        reference.step()
        assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True)), step
    assert all(not torch.equal(*pair) for pair in zip(before, ours.parameters(), strict=True))


@pytest.mark.parametrize("kind", OPTIMIZER_KINDS)
@pytest.mark.parametrize("rounding", [False, True])
def test_a_resumed_run_is_an_unbroken_one(kind, rounding, tmp_path):
    """Weights, moments, 8-bit codes, step counts and Prodigy's estimate: through files, bit for bit."""

    def make():
        built = module().bfloat16() if rounding else module()
        to_layout: Any = built.get_submodule("unet").to  # torch's annotations know it for tensors alone
        to_layout(memory_format=torch.channels_last)
        more = {"d0": 1e-4, "d_coef": 20.0} if kind == "prodigy" else {}
        decays: Any = {"weight_decay": 0.01, "weight_decays": {"unet.0.bias": 0.1}}
        spec = spec_of(kind, **decays, **more, stochastic_rounding=rounding)
        return built, build_optimizer(spec, built, seed=3)

    def run(built, optimizer, steps):
        for step in steps:
            begin_step(optimizer, step, 1.0 if kind == "prodigy" else 1e-2)
            pictures = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(step))
            unet: Any = built.get_submodule("unet")
            out = unet(pictures.to(next(built.parameters()).dtype)).float()
            text = built.get_submodule("text_encoder")(out.mean((2, 3)).to(next(built.parameters()).dtype)).float()
            (out.square().mean() + (text - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

    def known(built, optimizer):
        names = {id(parameter): name for name, parameter in built.named_parameters()}
        return {name: value.detach() for name, value in built.named_parameters()} | optimizer_tensors(optimizer, names)

    whole = make()
    run(*whole, range(6))
    broken = make()
    run(*broken, range(3))
    names = {id(parameter): name for name, parameter in broken[0].named_parameters()}
    state = RunState(3, broken[0].state_dict(), {}, optimizer_tensors(broken[1], names), {})
    save_state(tmp_path, state, 1)
    loaded = load_newest_state(tmp_path, print)
    assert loaded is not None
    built, optimizer = make()
    built.load_state_dict(loaded.student)
    load_optimizer_tensors(optimizer, dict(built.named_parameters()), loaded.optimizer)
    run(built, optimizer, range(3, 6))
    mine, its = known(built, optimizer), known(*whole)
    assert mine.keys() == its.keys()
    assert len(mine) >= 2 * len(list(built.parameters()))
    different = [name for name in mine if mine[name].dtype != its[name].dtype or not torch.equal(mine[name], its[name])]
    assert different == []
    step = next(iter(optimizer.state.values()))["step"]
    assert type(step) is type(next(iter(whole[1].state.values()))["step"])
    weight: Any = built.get_submodule("unet.0").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    if kind == "prodigy":
        assert optimizer.param_groups[0]["d"] > optimizer.param_groups[0]["d0"]
        assert optimizer.param_groups[1]["k"] == 6


@pytest.mark.parametrize("kind", ["adamw_8bit", "adafactor", "prodigy"])
def test_a_run_resumes_with_every_kind(make_trainer, recipe, kind):
    changes = recipe(optimizer={"kind": kind, "lr": 1.0 if kind == "prodigy" else 1e-2}, ema=None)
    whole = make_trainer(changes, "whole")
    whole.train()
    make_trainer(changes.model_copy(update={"steps": 3}), "broken").train()
    resumed = make_trainer(changes, "broken", warn=lambda line: None)
    assert resumed.resume()
    assert resumed.step == 3
    resumed.train()
    mine, its = resumed.student.state_dict(), whole.student.state_dict()
    assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.parametrize("kind", OPTIMIZER_KINDS)
def test_memory_is_what_is_really_held(kind):
    large = optimizer_bytes(spec_of(kind), [torch.Size((1280, 10240)), torch.Size((1280,))]) / 1280 / 10241
    assert large == pytest.approx(
        {"adamw": 8.0, "adamw_8bit": 2.03125, "adafactor": 0.0039, "prodigy": 16.0}[kind], rel=0.02
    )
    for more in ({}, {"beta1": 0.5} if kind == "adafactor" else {}):
        built = module()
        nn.init.ones_(built.get_parameter("unet.2.bias"))  # of a weight that is all zero, Prodigy keeps one number
        spec = spec_of(kind, **more)
        optimizer = build_optimizer(spec, built)
        for parameter in built.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        held = sum(
            value.nbytes
            for values in optimizer.state.values()
            for key, value in values.items()
            if isinstance(value, torch.Tensor) and value.ndim and not key.startswith("qmap")
        )
        assert optimizer_bytes(spec, [parameter.shape for parameter in built.parameters()]) == held


def test_what_can_run_here_and_what_cannot(monkeypatch, recipe):
    assert [unavailable_because(kind) for kind in OPTIMIZER_KINDS] == [None] * 4
    with pytest.raises(InvalidValue, match="optimizer.kind: 'lion'"):
        unavailable_because("lion")
    for kind, package, instead in (("adamw_8bit", "bitsandbytes", "adafactor"), ("prodigy", "prodigyopt", "adamw")):
        with monkeypatch.context() as patch:
            patch.setattr("vega_diffusion.training.optimizer.find_spec", lambda name: None)
            with pytest.raises(
                Unavailable, match=rf"^optimizer.kind: {kind} cannot.*{package}.*install.*{instead}"
            ) as no:
                make_accelerator(recipe(optimizer={"kind": kind}), "cpu")
            assert "\n" not in str(no.value)
        with monkeypatch.context() as patch:  # there, but without a kernel for the device

            def step(self):
                raise RuntimeError("no kernel\nfor this")

            patch.setattr(CLASSES[kind], "step", step)
            assert unavailable_because(kind) == f"{package} does not work on cpu (no kernel for this)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"kind": "prodigy"}, "sharding": "full"}, "^sharding: 'full'.*none with prodigy"),
        ({"optimizer": {"kind": "adamw_8bit"}, "sharding": "full"}, "^sharding: 'full'.*none with adamw_8bit"),
        ({"optimizer": {"kind": "adafactor"}, "sharding": "full"}, "^sharding: 'full'.*none with adafactor"),
        ({"optimizer": {"stochastic_rounding": True}, "sharding": "full"}, "^sharding: 'full'.*stochastic rounding"),
        ({"optimizer": {"stochastic_rounding": True}}, "^optimizer.stochastic_rounding: True.*bf16"),
        ({"optimizer": {"weight_decays": {"unet": 0.1}}}, r"^optimizer.weight_decays: 'unet'.*components \(vae\)"),
        (
            {"model": {"base": "vega-mini", "train": ["vae"], "dtype": "bf16"}},
            "^optimizer.stochastic_rounding: False.*true with model.dtype = bf16",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_at_the_start(recipe, changes, words):
    with pytest.raises(InvalidValue, match=words) as refused:
        make_accelerator(recipe(**changes), "cpu")
    assert "\n" not in str(refused.value)


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


def test_a_factor_or_decay_for_nothing_is_refused():
    with pytest.raises(InvalidValue, match=r"optimizer.lr_factors: 'unet.mid'"):
        build_optimizer(AdamWSpec(lr_factors={"unet.mid": 2.0}), student())
    with pytest.raises(InvalidValue, match=r"optimizer.weight_decays: 'unet.mid'"):
        build_optimizer(AdamWSpec(weight_decays={"unet.mid": 2.0}), student())


SCHEDULES = ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]


@pytest.mark.parametrize("kind", SCHEDULES)
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


def test_restarts_and_powers_in_closed_form():
    restarts = LrScheduleSpec(kind="cosine_with_restarts", num_cycles=2, final_factor=0.2)
    fractions = [lr_factor(restarts, step, 8) for step in range(10)]
    half = [1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]
    assert fractions == pytest.approx([0.2 + 0.8 * one for one in (*half, *half, 0.0, 0.0)])
    power = LrScheduleSpec(kind="polynomial", power=2.0, final_factor=0.1)
    assert [lr_factor(power, step, 4) for step in range(6)] == pytest.approx(
        [0.1 + 0.9 * one**2 for one in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0)]
    )


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("linear", {}),
        ("cosine", {}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", {"power": 2.0}),
    ],
)
def test_rates_are_those_of_diffusers_at_every_step(name, more, warmup):
    """But for a warm-up, where diffusers' first step is lost at a rate of 0 and ours is one step ahead."""
    peak, steps = 2e-4, 40
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, **more)
    theirs = []
    for _ in range(steps + 1):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    spec = lr_schedule_of_diffusers(name, peak, warmup, **more)
    warm = 0 if name == "constant" else warmup
    expected = [theirs[step + 1 if step < warm else step] for step in range(steps + 1)]
    assert [peak * lr_factor(spec, step, steps) for step in range(steps + 1)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("micro", [1, 4])
def test_cosine_does_not_notice_accumulation(make_trainer, recipe, micro):
    trainer = make_trainer(recipe(lr_schedule={"kind": "cosine"}, micro_batch_size=micro))
    rates = [trainer._one_step() for _ in range(6)]
    assert rates == pytest.approx([1e-2 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])
