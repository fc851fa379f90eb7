"""What blocks cost, what their removal changes, and the choice under a budget against every possible one."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.importance import (
    MID_UNIT,
    bypassed,
    latency_costs,
    mac_costs,
    parameter_costs,
    removable_units,
    removal_errors,
)
from vega_diffusion.models.measure import count_parameters, example_inputs, unet_macs
from vega_diffusion.models.selection import choose, choose_shape, map_of, pareto
from vega_diffusion.models.surgery import carve
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.layer_map import block_table
from vega_diffusion.specs.presets import MINI_SDXL, SDXL, SSD_1B, VEGA

WIDTHS = {"block_out_channels": (8, 16, 32), "norm_num_groups": 4}
LARGE = MINI_SDXL.unet.model_copy(update=WIDTHS)
TINY = LARGE.model_copy(update={"transformer_layers_per_block": (1, 1, 2)})


def ask(unet: nn.Module) -> Tensor:
    inputs = example_inputs(LARGE, 8, 8, 5)
    draw = torch.Generator().manual_seed(1)
    inputs |= {name: torch.randn(inputs[name].shape, generator=draw) for name in ("sample", "encoder_hidden_states")}
    return unet(**inputs).sample


def test_units_are_the_transformer_blocks_and_the_mid_blocks_layer():
    assert len(removable_units(SDXL.unet)) == 61
    assert len(removable_units(SSD_1B.unet)) == 34
    assert removable_units(SDXL.unet)[-1] == MID_UNIT
    assert MID_UNIT not in removable_units(VEGA.unet)


def test_costs_are_what_the_smaller_network_lacks():
    costs = parameter_costs(SDXL.unet)
    assert costs.whole == 2_567_463_684
    assert set(costs.units.values()) == {10_005_120.0, 34_755_840.0, costs.units[MID_UNIT]}
    dropped = [unit for unit in removable_units(SDXL.unet) if unit == MID_UNIT]
    for layer in {unit.rpartition(".")[0] for unit in costs.units if unit != MID_UNIT}:
        blocks = [unit for unit in costs.units if unit.rpartition(".")[0] == layer]
        dropped += blocks[1 if len(blocks) == 2 else 2 :]
    assert costs.whole - sum(costs.units[unit] for unit in dropped) == 745_225_604
    macs = mac_costs(LARGE)
    dropped = [
        MID_UNIT,
        "up_blocks.0.attentions.1.transformer_blocks.4",
        "down_blocks.1.attentions.0.transformer_blocks.1",
    ]
    side = 8 * LARGE.sample_size
    student = map_of(LARGE, dropped, "", "").student_spec(LARGE)
    assert macs.whole == unet_macs(LARGE, side, side)
    assert macs.whole - sum(macs.units[unit] for unit in dropped) == unet_macs(student, side, side)


def test_times_are_parts_of_the_whole():
    costs = latency_costs(build_unet(TINY).eval(), TINY, repeats=3)
    assert costs.units.keys() == set(removable_units(TINY))
    assert all(seconds > 0 for seconds in costs.units.values())
    assert sum(costs.units.values()) < costs.whole


@pytest.mark.parametrize("unit", ["down_blocks.1.attentions.1.transformer_blocks.0", MID_UNIT])
def test_leaving_a_unit_out_is_what_the_carved_student_computes(unit):
    torch.manual_seed(0)
    unet = build_unet(LARGE).eval()
    layers = map_of(LARGE, [unit], "one less", "")
    student, _ = carve(layers, layers.student_spec(LARGE), LARGE, unet.state_dict())
    with torch.no_grad():
        whole = ask(unet)
        with bypassed(unet, [unit]):
            without = ask(unet)
        torch.testing.assert_close(ask(student), without)
        assert torch.equal(ask(unet), whole)  # nothing stays behind
    errors = removal_errors(unet, [unit], [ask, ask], lambda done, total: None)
    assert errors[unit] == pytest.approx(float((without - whole).square().sum() / whole.square().sum()), rel=1e-4)
    assert errors[unit] > 0


def test_a_unit_that_adds_nothing_has_no_score():
    torch.manual_seed(0)
    unet = build_unet(LARGE).eval()
    unit = "up_blocks.0.attentions.2.transformer_blocks.3"
    for end in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2"):
        for parameter in unet.get_submodule(f"{unit}.{end}").parameters():
            nn.init.zeros_(parameter)
    seen: list[tuple[int, int]] = []
    errors = removal_errors(unet, [*removable_units(LARGE)[:2], unit], [ask], lambda *now: seen.append(now))
    assert errors[unit] == 0
    assert min(value for name, value in errors.items() if name != unit) > 0
    assert seen == [(1, 3), (2, 3), (3, 3)]


SMALL = LARGE.model_copy(
    update={"transformer_layers_per_block": (1, 2, 2), "mid_block_type": "UNetMidBlock2D", "layers_per_block": 1}
)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.3))
def test_the_choice_is_the_best_of_all_possible_ones(seed, share):
    costs = parameter_costs(SMALL)
    units = removable_units(SMALL)
    draw = torch.Generator().manual_seed(seed)
    errors = dict(zip(units, torch.rand(len(units), generator=draw).tolist(), strict=True))
    to_save = share * sum(costs.units.values())
    layers = {unit.rpartition(".")[0] for unit in units}
    best = min(
        sum(errors[unit] for unit in removed)
        for count in range(len(units))
        for removed in combinations(units, count)
        if sum(costs.units[unit] for unit in removed) >= to_save
        and all(sum(unit.startswith(f"{layer}.") for unit in removed) < 2 for layer in layers)
    )
    (choice,) = choose(SMALL, errors, costs.units, to_save)
    assert choice.score == pytest.approx(best)
    assert choice.saved >= to_save
    student = map_of(SMALL, choice.removed, "best", "").student_spec(SMALL)
    with torch.device("meta"):
        assert costs.whole - count_parameters(build_unet(student)) == choice.saved


def test_candidates_differ_fit_and_come_best_first():
    costs = parameter_costs(LARGE)
    draw = torch.Generator().manual_seed(3)
    errors = {unit: float(torch.rand((), generator=draw)) for unit in costs.units}
    found = choose(LARGE, errors, costs.units, 0.6 * costs.whole, 6)
    assert len({choice.removed for choice in found}) == len(found) >= 2
    assert [choice.score for choice in found] == sorted(choice.score for choice in found)
    for choice in found:
        layers = map_of(LARGE, choice.removed, "some", "")
        layers.check(layers.student_spec(LARGE), LARGE)
        assert set(layers.blocks.values()) | set(choice.removed) | {"mid_block.resnets.1"} >= set(
            block_table(LARGE)
        ) - {name for name in block_table(LARGE) if name.startswith(MID_UNIT)}
    with pytest.raises(InvalidValue, match="--budget: .* at most"):
        choose(LARGE, errors, costs.units, 0.99 * costs.whole)
    assert choose(LARGE, errors, costs.units, 0.0)[0].removed == ()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_given_shape_keeps_the_best_blocks_of_every_layer(seed):
    teacher = SMALL.model_copy(update={"transformer_layers_per_block": (1, 3, 3)})
    student = SMALL.model_copy(update={"transformer_layers_per_block": (1, 1, 2)})
    units = removable_units(teacher)
    draw = torch.Generator().manual_seed(seed)
    errors = dict(zip(units, torch.rand(len(units), generator=draw).tolist(), strict=True))
    found = choose_shape(teacher, errors, student, 12)
    wanted = Counter(unit.rpartition(".")[0] for unit in removable_units(student))
    possible = [
        sum(errors[unit] for unit in units if unit not in kept)
        for kept in combinations(units, wanted.total())
        if Counter(unit.rpartition(".")[0] for unit in kept) == wanted
    ]
    assert [choice.score for choice in found] == pytest.approx(sorted(possible)[:12])
    map_of(teacher, found[0].removed, "best", "").check(student, teacher)


def test_a_shape_of_the_known_students():
    errors = dict.fromkeys(removable_units(SDXL.unet), 1.0)
    for student in (VEGA, SSD_1B):
        (choice,) = choose_shape(SDXL.unet, errors, student.unet)
        map_of(SDXL.unet, choice.removed, "known", "").check(student.unet, SDXL.unet)
    with pytest.raises(InvalidValue, match="--budget: .* at most the teacher's 1"):
        choose_shape(VEGA.unet, dict.fromkeys(removable_units(VEGA.unet), 1.0), SDXL.unet)


def test_the_front_holds_what_no_other_beats():
    points: dict[str, Any] = {"a": (1, 5), "b": (2, 3), "c": (3, 4), "d": (4, 1), "e": (2, 3)}
    assert pareto(points) == ["a", "b", "e", "d"]
