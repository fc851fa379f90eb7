"""Stochastic rounding: unbiased, a function of seed, step and name, and nothing for weights that need none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.optimizer import AdafactorSpec, AdamW8bitSpec, AdamWSpec, OptimizerSpec, ProdigySpec
from vega_diffusion.training import rounding
from vega_diffusion.training.optimizer import begin_step, build_optimizer, optimizer_bytes
from vega_diffusion.training.rounding import round_stochastically
from vega_diffusion.training.student import Student

SPECS: tuple[OptimizerSpec, ...] = (
    AdamWSpec(lr=1e-2, stochastic_rounding=True),
    AdamW8bitSpec(kind="adamw_8bit", lr=1e-2, stochastic_rounding=True),
    AdafactorSpec(kind="adafactor", lr=1e-2, stochastic_rounding=True),
    ProdigySpec(kind="prodigy", stochastic_rounding=True),
)
NUMBER = 2**18


def one_weight(values: torch.Tensor) -> tuple[Student, nn.Parameter]:
    holder = nn.Module()
    holder.weight = nn.Parameter(values)
    return Student({"unet": holder}), holder.weight


def step(optimizer: torch.optim.Optimizer, student: nn.Module, number: int, lr: float = 1e-2) -> None:
    begin_step(optimizer, number, lr)
    for index, parameter in enumerate(student.parameters()):
        generator = torch.Generator().manual_seed(100 * number + index)
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.step()


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, -0.25 - 1e-4, 1e-30, 65504.7])
def test_expected_values_are_kept(value):
    values = torch.full((NUMBER,), value)
    rounded = round_stochastically(values, 4).double()
    exact = values[0].double().item()
    low, high = (rounded.min().item(), rounded.max().item())
    assert low < exact < high
    assert set(rounded.unique().tolist()) == {low, high}  # its two neighbours in bf16
    assert torch.tensor([low, high]).bfloat16().view(torch.int16).diff().abs().item() == 1
    up = (exact - low) / (high - low)
    deviation = (high - low) * (up * (1 - up) / NUMBER) ** 0.5
    assert abs(rounded.mean().item() - exact) < 4 * deviation


def test_what_bf16_can_say_stays():
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    rounded = round_stochastically(numbers.float(), 1)
    finite = ~numbers.isnan()
    assert torch.equal(rounded[finite].view(torch.int16), numbers[finite].view(torch.int16))
    assert rounded[~finite].isnan().all()
    # The largest of all that are not a number, which GPUs make: adding to it would give a zero.
    worst = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).repeat(64).view(torch.float32)
    assert round_stochastically(worst, 2).isnan().all()


def test_draws_are_a_function_of_the_seed_and_independent():
    values = torch.full((64, 8, 8, 8), 1.003)
    first = round_stochastically(values, 1)
    assert first.shape == values.shape
    assert torch.equal(first, round_stochastically(values, 1))
    assert torch.equal(first, round_stochastically(values.to(memory_format=torch.channels_last), 1))
    other = round_stochastically(values, 2)
    high = first.float().max()
    up = (1.003 - 1.0) / (high.item() - 1.0)
    both = ((first == high) & (other == high)).float().mean().item()
    deviation = (up**2 * (1 - up**2) / values.numel()) ** 0.5
    assert abs(both - up**2) < 4 * deviation
    neighbours = ((first.flatten()[1:] == high) & (first.flatten()[:-1] == high)).float().mean().item()
    assert abs(neighbours - up**2) < 6 * deviation


def test_a_quarter_moves_where_bf16_alone_stands_still():
    """facts/training.md 1.5, row 10: 100 steps of AdamW at 1e-4 take 0.25 to 0.24 in fp32 and nowhere in bf16."""
    ended = {}
    for name, dtype, by_chance in (
        ("fp32", torch.float32, False),
        ("bf16", torch.bfloat16, False),
        ("ours", torch.bfloat16, True),
    ):
        student, weight = one_weight(torch.full((4096,), 0.25, dtype=dtype))
        optimizer = build_optimizer(AdamWSpec(lr=1e-4, stochastic_rounding=by_chance), student)
        for number in range(100):
            begin_step(optimizer, number, 1e-4)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ended[name] = weight.detach().double()
    assert ended["fp32"].mean().item() == pytest.approx(0.24, abs=1e-6)
    assert (ended["bf16"] == 0.25).all()
    # One step of bf16 below 0.25 is 2**-10: a hundred draws of 1e-4 deviate by at most half of it, ten times over.
    assert ended["ours"].mean().item() == pytest.approx(0.24, abs=4 * 10 * 2**-11 / 4096**0.5)
    assert ended["ours"].std() > 0


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_steps_are_those_in_fp32_but_for_the_last_rounding(spec):
    """From weights that bf16 holds exactly, one step in fp32 and ours have the same two neighbours."""
    torch.manual_seed(0)
    weights = torch.randn(65, 64).bfloat16()
    student, weight = one_weight(weights.clone())
    plain, reference = one_weight(weights.float())
    ours = build_optimizer(spec, student, seed=1)
    theirs = build_optimizer(spec.model_copy(update={"stochastic_rounding": False}), plain)
    begin_step(ours, 0, 1e-2)
    begin_step(theirs, 0, 1e-2)
    weight.grad = torch.randn(65, 64).bfloat16()
    reference.grad = weight.grad.float()
    ours.step()
    theirs.step()
    exact, rounded = reference.detach(), weight.detach().float()
    spacing = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((rounded - exact).abs() < spacing * 1.0001).all()
    for mine, its in zip(ours.state[weight].values(), theirs.state[reference].values(), strict=True):
        assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its


@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec.kind)
def test_copies_of_a_few_weights_at_a_time_change_nothing(spec, monkeypatch):
    def trained(bucket: int) -> list[torch.Tensor]:
        monkeypatch.setattr(rounding, "BUCKET", bucket)
        torch.manual_seed(1)
        student = Student({"unet": nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))}).bfloat16()
        optimizer = build_optimizer(spec, student, seed=9)
        for number in range(4):
            step(optimizer, student, number)
        return [one.detach() for one in student.parameters()]

    assert all(torch.equal(*pair) for pair in zip(trained(1), trained(2**24), strict=True))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_fp32_weights_beside_bf16_learn_as_ever(spec):
    torch.manual_seed(1)
    heads = nn.Linear(5, 4)
    student = Student({"unet": nn.Linear(4, 4).bfloat16()}, heads)
    alone = copy.deepcopy(student)
    for one in alone.get_submodule("unet").parameters():
        one.data = one.data.float()
    ours = build_optimizer(spec, student)
    theirs = build_optimizer(spec.model_copy(update={"stochastic_rounding": False}), alone)
    step(ours, student, 0)
    begin_step(theirs, 0, 1e-2)
    for one, two in zip(alone.parameters(), student.parameters(), strict=True):
        assert two.grad is not None
        one.grad = two.grad.float()
    theirs.step()
    assert [one.dtype for one in student.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for one, two in zip(heads.parameters(), alone.get_submodule("heads").parameters(), strict=True):
        assert torch.equal(one, two)


def test_another_seed_step_or_name_is_another_draw():
    def after(seed: int, number: int, name: str) -> torch.Tensor:
        student = Student({name: nn.Linear(64, 64, bias=False)}).bfloat16()
        weight: Any = student.get_submodule(name).weight
        nn.init.ones_(weight)
        optimizer = build_optimizer(AdamWSpec(lr=1e-3, stochastic_rounding=True), student, seed)
        begin_step(optimizer, number, 1e-3)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return weight.detach().clone()

    first = after(0, 0, "unet")
    assert torch.equal(first, after(0, 0, "unet"))
    for other in (after(1, 0, "unet"), after(0, 1, "unet"), after(0, 0, "text_encoder")):
        assert not torch.equal(first, other)


def test_weights_without_a_gradient_stay_and_state_is_under_the_weights():
    student = Student({"unet": nn.Linear(64, 65), "text_encoder": nn.Linear(2, 2)}, freeze_after={"text_encoder": 1})
    student.bfloat16()
    optimizer = build_optimizer(SPECS[1], student)
    step(optimizer, student, 0)
    student.set_trainable(1)
    kept = [one.detach().clone() for one in student.get_submodule("text_encoder").parameters()]
    unet = list(student.get_submodule("unet").parameters())
    for one in unet:
        one.grad = torch.ones_like(one)
    optimizer.step()
    assert all(
        torch.equal(*pair) for pair in zip(kept, student.get_submodule("text_encoder").parameters(), strict=True)
    )
    assert [optimizer.state[one]["step"] for one in unet] == [2, 2]
    assert optimizer.state[unet[0]]["state1"].dtype == torch.uint8
    assert optimizer.state[unet[1]]["state1"].dtype == torch.float32
    optimizer.zero_grad()
    assert unet[0].grad is None


def test_rounding_without_bf16_weights_is_refused():
    student, _ = one_weight(torch.zeros(3))
    with pytest.raises(InvalidValue, match="optimizer.stochastic_rounding: True.*model.dtype = bf16"):
        build_optimizer(AdamWSpec(stochastic_rounding=True), student)


def test_memory_counts_the_copies():
    shapes = [torch.Size((4096, 4096)), torch.Size((4096, 4096)), torch.Size((10,))]
    values = 2 * 4096**2 + 10
    assert optimizer_bytes(SPECS[0], shapes) == 8 * values + 8 * 2**24
    assert optimizer_bytes(SPECS[3], shapes) == 16 * values + 8 * values
    assert optimizer_bytes(SPECS[0], shapes[2:]) == 8 * 10 + 8 * 10
    assert optimizer_bytes(SPECS[0], []) == 0
