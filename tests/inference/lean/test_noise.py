"""Noise without torch is torch's: draw after draw, for any shape and seed, in float32 and rounded to bfloat16."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vega_diffusion.inference.lean.noise import TorchNoise, rounded_to_bfloat16
from vega_diffusion.specs.request import MAX_SEED


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, MAX_SEED),
    shapes=st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(4, 13), st.integers(4, 13)), min_size=1, max_size=3
    ),
)
def test_any_course_of_draws_is_torchs(seed: int, shapes: list[tuple[int, ...]]) -> None:
    generator, ours = torch.Generator("cpu").manual_seed(seed), TorchNoise(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=generator).numpy()
        drawn = ours.normal(shape)
        assert (drawn.shape, drawn.dtype) == (shape, numpy.float32)
        numpy.testing.assert_allclose(drawn, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**40 + 7])
def test_bfloat16_noise_is_torchs_but_for_ties(seed: int) -> None:
    expected = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16).float()
    drawn = rounded_to_bfloat16(TorchNoise(seed).normal((1, 4, 64, 64)))
    assert numpy.mean(drawn == expected.numpy()) > 0.999
    numpy.testing.assert_allclose(drawn, expected.numpy(), rtol=2**-7, atol=0)


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**100, min_value=-(2.0**100)))
def test_rounding_is_torchs(number: float) -> None:
    rounded = rounded_to_bfloat16(numpy.array([number], numpy.float32))
    assert rounded[0] == torch.tensor(number).bfloat16().float().item()


def test_fewer_numbers_than_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="15 numbers"):
        TorchNoise(0).normal((15,))
