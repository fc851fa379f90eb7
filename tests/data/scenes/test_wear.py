"""Worn pictures stay true, spoiled ones do not; both by position."""

from __future__ import annotations

import math

import pytest
import torch

from vega_diffusion.data.scenes.scene import BACKGROUNDS
from vega_diffusion.data.scenes.wear import blocked, enlarged, spoiled, worn
from vega_diffusion.diffusion.randomness import PositionRng


def pictures(count: int) -> torch.Tensor:
    return PositionRng(3, range(count)).uniform("picture", (3, 128, 128)) * 2 - 1


@pytest.mark.parametrize("change", [worn, spoiled])
def test_a_picture_s_wear_depends_on_its_position_alone(change) -> None:
    pixels = pictures(4)
    together = change(pixels.clone(), PositionRng(7, [4, 5, 6, 7]))
    alone = change(pixels[2:3].clone(), PositionRng(7, [6]))
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=0)
    elsewhere = change(pixels[2:3].clone(), PositionRng(7, [8]))
    assert (alone - elsewhere).abs().max() > 0.01
    assert together.abs().max() <= 1


def test_worn_backgrounds_keep_their_names() -> None:
    rgb = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
    plain = rgb[:, :, None, None].expand(-1, -1, 128, 128)
    for start in range(0, 120, 12):
        means = worn(plain.contiguous(), PositionRng(1, range(start, start + 12))).mean((2, 3))
        assert torch.cdist(means, rgb).argmin(1).tolist() == list(range(12))


def test_blocks_with_fine_levels_are_the_picture_and_with_coarse_levels_are_not() -> None:
    pixels = pictures(2)
    fine = blocked(pixels, torch.full((2, 1, 1, 1), 1e-6))
    torch.testing.assert_close(fine, pixels, atol=1e-4, rtol=0)
    coarse = blocked(pixels, torch.full((2, 1, 1, 1), 0.3))
    error = (coarse - pixels).square().mean().sqrt().item()
    # A transform that keeps lengths: the error is that of rounding, steps 0.3 to 1.2, step / sqrt(12) each.
    steps = [0.3 * (1 + 3 * (i + j) / 14) for i in range(8) for j in range(8)]
    assert error == pytest.approx(math.sqrt(sum(s * s for s in steps) / 64 / 12), rel=0.15)


def test_enlarging_is_bilinear() -> None:
    small = pictures(1)[..., :16, :16]
    expected = torch.nn.functional.interpolate(small, size=64, mode="bilinear")
    torch.testing.assert_close(enlarged(small, 64), expected, atol=1e-5, rtol=0)


def test_spoiling_moves_things_far_and_keeps_plain_colours() -> None:
    dot = torch.full((8, 3, 128, 128), -1.0)
    dot[:, :, 40:88, 40:88] = 1
    gone = spoiled(dot, PositionRng(0, range(8)))
    assert (gone - dot).abs().mean() > 0.15
    flat = torch.full((1, 3, 128, 128), 0.25)
    torch.testing.assert_close(spoiled(flat, PositionRng(0, [3])), flat)
