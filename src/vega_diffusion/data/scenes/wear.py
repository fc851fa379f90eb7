"""What a weak autoencoder or generator does to a picture: a little of it (`worn`), or so much that nothing is left.

A checker that has seen worn pictures looks past blur, noise, blocks and slight shifts of colour; one that has seen
spoiled pictures does not take every blot for the nearest noun. All draws are functions of the sample's position.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from vega_diffusion.data.scenes.filters import blurred
from vega_diffusion.diffusion.randomness import PositionRng

BLOCK_PX = 8
_BLUR_PX = 1.4
_WARP_PX = 21.0
_WARP_POINTS = 9


def worn(pixels: Tensor, rng: PositionRng) -> Tensor:
    """Return pictures a little worse than they were; what they show and the words for their colours stay true.

    Args:
        pixels: float32 `[B, 3, S, S]` in [-1, 1]; S divides by 8.
        rng: One position a picture.

    Returns:
        The same shape and range.
    """
    draws = rng.uniform("wear", (10,)).to(pixels.device)[:, :, None, None, None]
    blur, low, block, gain, offset = draws[:, 0], draws[:, 1], draws[:, 2], draws[:, 3:6, 0], draws[:, 6:9, 0]
    pixels = torch.lerp(pixels, blurred(pixels, _BLUR_PX), _part(blur, 0.6))
    small = functional.avg_pool2d(pixels, 2)
    pixels = torch.lerp(pixels, enlarged(small, pixels.shape[-1]), _part(low, 0.3))
    rows = (draws[:, 2].flatten() < 0.3).nonzero().flatten()
    if len(rows):
        pixels = pixels.index_copy(0, rows, blocked(pixels[rows], 0.03 + 0.5 * block[rows]))
    pixels = pixels * (1 + 0.14 * (gain - 0.5)) + 0.14 * (offset - 0.5)
    patches = enlarged(rng.normal((3, 16, 16), "wear patches").to(pixels.device), pixels.shape[-1])
    grain = rng.normal(pixels.shape[1:], "wear grain").to(pixels.device)
    strength = _part(draws[:, 9], 0.6)
    return (pixels + strength * (0.07 * patches + 0.06 * grain)).clamp(-1, 1)


def spoiled(pixels: Tensor, rng: PositionRng) -> Tensor:
    """Return pictures whose objects nobody can name any more: bent by a strong, wild displacement.

    Args:
        pixels: float32 `[B, 3, H, W]`.
        rng: One position a picture.
    """
    height, width = pixels.shape[-2:]
    field = rng.normal((2, _WARP_POINTS, _WARP_POINTS), "spoil").to(pixels.device)
    field = functional.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
    down, across = torch.meshgrid(
        torch.linspace(-1, 1, height, device=pixels.device),
        torch.linspace(-1, 1, width, device=pixels.device),
        indexing="ij",
    )
    grid = torch.stack([across, down], dim=-1)[None] + field.permute(0, 2, 3, 1) * (2 * _WARP_PX / width)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def blocked(pixels: Tensor, step: Tensor) -> Tensor:
    """Round the cosine transform of every 8 x 8 block, as JPEG does; high frequencies more coarsely.

    Args:
        pixels: `[B, C, H, W]`.
        step: Width of a level at the lowest frequency, `[B, 1, 1, 1]`; at the highest it is four times as wide.
    """
    batch, channels, height, width = pixels.shape
    basis = _cosines().to(pixels)
    blocks = pixels.reshape(batch, channels, height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    blocks = blocks.permute(0, 1, 2, 4, 3, 5)
    waves = basis @ blocks @ basis.T
    order = torch.arange(BLOCK_PX, device=pixels.device)
    steps = step[:, :, :, :, None, None] * (1 + 3 * (order[:, None] + order[None]) / (2 * BLOCK_PX - 2))
    back = basis.T @ ((waves / steps).round() * steps) @ basis
    return back.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels, height, width)


def enlarged(pixels: Tensor, side: int) -> Tensor:
    """Return square pictures `[..., S, S]` bilinearly enlarged to `side` px, by two matrix products."""
    matrix = _bilinear(pixels.shape[-1], side).to(pixels)
    return matrix @ pixels @ matrix.T


@cache
def _bilinear(before: int, after: int) -> Tensor:
    lines = torch.eye(before)[None]
    return functional.interpolate(lines, size=after, mode="linear")[0].T.contiguous()


def _part(draws: Tensor, rate: float) -> Tensor:
    """Turn uniform draws into a strength: zero in all but a share `rate` of cases, there uniform in 0..1."""
    return ((rate - draws) / rate).clamp_min(0)


@cache
def _cosines() -> Tensor:
    """The orthonormal cosine transform, `[8, 8]` (Ahmed, Natarajan and Rao 1974)."""
    k = torch.arange(BLOCK_PX, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * BLOCK_PX)) * math.sqrt(2 / BLOCK_PX)
    rows[0] /= math.sqrt(2)
    return rows
