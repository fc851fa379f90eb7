"""Optimizers and schedules as data: kinds, refusals in one line, and identities that older recipes keep."""

from __future__ import annotations

from typing import Any

import pytest

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.optimizer import (
    OPTIMIZER_KINDS,
    AdafactorSpec,
    AdamW8bitSpec,
    AdamWSpec,
    LrScheduleSpec,
    ProdigySpec,
    lr_schedule_of_diffusers,
)
from vega_diffusion.specs.recipe import TrainRecipe


def recipe(**changes) -> TrainRecipe:
    data = {
        "model": {"base": "vega-mini", "train": ["unet", "text_encoder"]},
        "data": {"kind": "scene_latents"},
        "objective": {"kind": "denoising"},
        "steps": 10,
        "batch_size": 2,
        "micro_batch_size": 1,
    }
    return TrainRecipe.from_dict(data | changes)


def refused(optimizer) -> str:
    with pytest.raises(VegaError) as error:
        recipe(optimizer=optimizer)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({}, AdamWSpec),
        ({"lr": 1e-3}, AdamWSpec),
        ({"kind": "adamw"}, AdamWSpec),
        ({"kind": "adamw_8bit", "betas": [0.8, 0.9]}, AdamW8bitSpec),
        ({"kind": "adafactor", "beta1": 0.9, "weight_decays": {"text_encoder": 0.1}}, AdafactorSpec),
        ({"kind": "prodigy", "beta3": 0.9}, ProdigySpec),
    ],
)
def test_kinds_are_read_and_round_trip(table, kind):
    read = recipe(optimizer=table)
    assert type(read.optimizer) is kind
    assert TrainRecipe.from_json(read.to_json()) == read
    assert {"adamw", "adamw_8bit", "adafactor", "prodigy"} == set(OPTIMIZER_KINDS)


def test_who_says_nothing_gets_adamw_and_says_what_was_always_said():
    then = {key: value for key, value in recipe().identity().items() if key.startswith(("optimizer.", "lr_schedule."))}
    assert then == {
        "optimizer.kind": "adamw",
        "optimizer.lr": 1e-4,
        "optimizer.betas": [0.9, 0.999],
        "optimizer.eps": 1e-8,
        "optimizer.weight_decay": 0.0,
        "lr_schedule.kind": "constant",
        "lr_schedule.warmup_steps": 0,
        "lr_schedule.final_factor": 0.0,
        "lr_schedule.decay_steps": None,
    }


def test_every_new_setting_is_a_part_of_the_identity():
    known = recipe()
    for change in (
        {"optimizer": {"stochastic_rounding": True}},
        {"optimizer": {"weight_decays": {"unet": 0.1}}},
        {"optimizer": {"kind": "adamw_8bit"}},
        {"lr_schedule": {"kind": "polynomial"}},
        {"lr_schedule": {"kind": "polynomial", "power": 2.0}},
        {"lr_schedule": {"kind": "cosine_with_restarts", "num_cycles": 2}},
    ):
        other = recipe(**change)
        assert other.digest() != known.digest()
        assert other.changed_keys(known.identity())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "lion"}, ("optimizer.kind: 'lion'", "adamw_8bit, adafactor, prodigy")),
        ({"kind": "adafactor", "betas": [0.9, 0.99]}, ("optimizer.betas", "known keys")),
        ({"kind": "prodigy", "lr_factors": {"unet": 2.0}}, ("optimizer.lr_factors", "known keys")),
        ({"kind": "prodigy", "decouple": False}, ("optimizer.decouple", "where no weight decays")),
        ({"kind": "adafactor", "decay_rate": 0.8}, ("optimizer.decay_rate", "less than 0")),
        ({"kind": "adamw_8bit", "lr": "1"}, ("optimizer.lr: '1'", "number")),
        (3, ("optimizer: 3", "table")),
    ],
)
def test_mistakes_are_one_line_that_names_the_key_as_written(table, words):
    message = refused(table)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"kind": "constant", "power": 2.0}, "power"),
        ({"kind": "cosine", "num_cycles": 2}, "num_cycles"),
        ({"kind": "cosine_with_restarts", "power": 2.0}, "power"),
        ({"kind": "constant", "final_factor": 0.1}, "final_factor"),
    ],
)
def test_a_schedule_takes_no_setting_without_effect(table, field):
    with pytest.raises(InvalidValue, match=f"lr_schedule.{field}.*nothing with kind {table['kind']}"):
        LrScheduleSpec.from_dict(table)


def test_schedules_of_diffusers_by_name():
    assert lr_schedule_of_diffusers("constant", 1e-4, 500) == LrScheduleSpec()
    assert lr_schedule_of_diffusers("constant_with_warmup", 1e-4, 5) == LrScheduleSpec(warmup_steps=5)
    assert lr_schedule_of_diffusers("cosine", 1e-4, 5) == LrScheduleSpec(kind="cosine", warmup_steps=5)
    polynomial = lr_schedule_of_diffusers("polynomial", 1e-4, power=2.0)
    assert (polynomial.power, polynomial.final_factor) == (2.0, pytest.approx(1e-3))
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("piecewise_constant", {}, "--lr_scheduler: 'piecewise_constant'.*rules"),
        ("sawtooth", {}, "--lr_scheduler: 'sawtooth'.*constant_with_warmup"),
        ("cosine", {"num_cycles": 3}, "--lr_num_cycles: 3.*cosine_with_restarts"),
        ("linear", {"power": 2.0}, "--lr_power: 2.0.*polynomial"),
        ("polynomial", {"lr": 1e-8}, "--learning_rate: 1e-08"),
    )
    for name, changes, words in cases:
        more: dict[str, Any] = {"lr": 1e-4} | changes
        with pytest.raises(InvalidValue, match=words):
            lr_schedule_of_diffusers(name, **more)
