"""The algebra of adapters: PEFT computes the same, truncation is the best there is and exact at its own rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tiny_lora import adapter
from vega_diffusion.models.lora_algebra import change, changed, extract, product, resize

SHAPES = [(7, 5), (5, 9), (6, 4, 3, 3), (6, 4, 1, 1)]


def weight(shape: tuple[int, ...], seed: int = 99) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_changed_map_computes_what_peft_computes_beside_it(shape: tuple[int, ...], dora: bool):
    one = adapter(shape, rank=3, alpha=1.5, dora=dora)
    holder: Any = nn.Module()
    holder.it = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2], padding=1)
    plain: Any = holder.it
    inputs = torch.randn(2, shape[1]) if len(shape) == 2 else torch.randn(2, shape[1], 8, 8)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=1.5, target_modules=["it"], use_dora=dora), holder)  # type: ignore[arg-type]
    adapted: Any = holder.it
    with torch.no_grad():
        adapted.lora_A["default"].weight.copy_(one.down)
        adapted.lora_B["default"].weight.copy_(one.up)
        if one.magnitude is not None:
            length = adapted.lora_magnitude_vector["default"].weight
            length.copy_(one.magnitude.reshape(length.shape))
        theirs = adapted(inputs)
        before = plain(inputs)
        plain.weight.copy_(changed(plain.weight, [(one, 1.0)]))
        torch.testing.assert_close(plain(inputs), theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - before).abs().max() > 0.05


@pytest.mark.parametrize("dora", [False, True])
def test_changes_add_up_in_any_order_and_weight_zero_is_none(dora: bool):
    shape = (7, 5)
    w, first, second = weight(shape), adapter(shape, dora=dora), adapter(shape, 3, 1.0, 5, dora=dora)
    both = changed(w, [(first, 0.5), (second, -2.0)])
    torch.testing.assert_close(both, w + 0.5 * change(w, first) - 2.0 * change(w, second))
    torch.testing.assert_close(both, changed(w, [(second, -2.0), (first, 0.5)]))
    assert torch.equal(changed(w, [(first, 0.0), (second, 0.0)]), w)
    assert not torch.equal(both, w)


def test_sums_are_rounded_once():
    """In bfloat16 a hundred small changes of one weight would vanish one by one."""
    w = torch.ones(4, 4, dtype=torch.bfloat16)
    tiny_one = replace(adapter((4, 4), 1, 1.0), up=torch.full((4, 1), 1e-3), down=torch.ones(1, 4))
    assert torch.equal(changed(w, [(tiny_one, 1.0)]), w)
    many = changed(w, [(tiny_one, 1.0)] * 100)
    assert many.dtype == torch.bfloat16
    torch.testing.assert_close(many.float(), torch.full((4, 4), 1.1), rtol=5e-3, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_extraction_at_the_rank_of_a_change_gives_it_back(shape: tuple[int, ...]):
    one = adapter(shape, rank=2, alpha=3.0)
    found = extract(product(one), 2)
    torch.testing.assert_close(product(found.adapter), product(one), rtol=1e-4, atol=1e-5)
    assert (found.adapter.rank, found.adapter.alpha) == (2, 2.0)
    assert found.kept / found.energy == pytest.approx(1.0, abs=1e-9)
    assert found.adapter.down.shape == one.down.shape
    assert found.adapter.up.shape == one.up.shape


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_keeps_the_energy_that_it_says_and_no_other_keeps_more(shape: tuple[int, ...]):
    """The error of the best approximation is the energy of what was dropped (Eckart and Young)."""
    difference = weight(shape)
    found = extract(difference, 2)
    error = (product(found.adapter) - difference).double().square().sum()
    assert float(error) == pytest.approx(found.energy - found.kept, rel=1e-4)
    assert found.energy == pytest.approx(float(difference.double().square().sum()), rel=1e-6)
    noise = replace(found.adapter, up=found.adapter.up + 0.01 * weight(tuple(found.adapter.up.shape), 3))
    assert (product(noise) - difference).double().square().sum() > error
    most = min(shape[0], torch.Size(shape[1:]).numel())
    assert (extract(difference, 1000).adapter.rank, extract(difference, 1000).adapter.alpha) == (most, 1000.0)
    torch.testing.assert_close(product(extract(difference, 1000).adapter), difference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_resizing_is_extraction_from_the_product(shape: tuple[int, ...]):
    one = adapter(shape, rank=4, alpha=6.0)
    small, reference = resize(one, rank=2), extract(product(one), 2)
    torch.testing.assert_close(product(small.adapter), product(reference.adapter), rtol=1e-3, atol=1e-5)
    assert small.energy == pytest.approx(reference.energy, rel=1e-5)
    assert small.kept == pytest.approx(reference.kept, rel=1e-5)
    assert 0.3 < small.kept / small.energy < 0.999
    assert small.adapter.alpha == one.alpha, "so that all alphas of a file stay equal"


def test_resizing_loses_nothing_where_nothing_is_to_be_lost():
    one = adapter((20, 30), rank=4, alpha=3.0)
    assert resize(one, rank=4).adapter is one
    assert resize(one, rank=9).adapter is one
    padded = replace(one, down=torch.cat([one.down, one.down]), up=torch.cat([one.up, one.up], dim=1), alpha=6.0)
    assert padded.rank == 8
    back = resize(padded, rank=4)
    assert back.kept / back.energy == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(product(back.adapter), product(padded), rtol=1e-4, atol=1e-6)


def test_energy_chooses_the_smallest_rank_that_keeps_it():
    one = adapter((20, 30), rank=8, dtype=torch.float16)
    shares = [resize(one, rank=rank).kept / resize(one, rank=rank).energy for rank in range(1, 9)]
    assert shares == sorted(shares)
    for share in (0.2, 0.6, 0.95):
        found = resize(one, energy=share)
        rank = found.adapter.rank
        assert found.kept / found.energy >= share
        assert rank == 1 or shares[rank - 2] < share
        assert found.adapter.down.dtype == torch.float16
    assert resize(one, energy=1.0).adapter is one
    empty = replace(one, up=torch.zeros_like(one.up))
    assert resize(empty, energy=0.9).adapter.rank == 1
