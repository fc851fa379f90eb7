"""Decoding a large picture in overlapping tiles that are blended, so that memory stays that of one tile.

Arithmetic on tensors alone: which decoder runs and when tiles are wanted is `vae_policy`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along an axis: evenly spread, `overlap` cells or more in common, the last at the end.

    Args:
        length: Cells of the axis.
        tile: Cells of a tile.
        overlap: Fewer than `tile`.
    """
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def decode_tiled(decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int, overlap: int) -> Tensor:
    """Decode latents tile by tile and blend what overlaps, with weights that fall linearly towards inner borders.

    A decoder of local layers alone, whose reach is below half the overlap, gives nearly what it gives at once. Norms
    over the whole picture and attention see a tile only: tones may differ from tile to tile, which the blending spreads
    over the overlap.

    Args:
        decode: Latents `[B, C, h, w]` to images `[B, 3, H, W]`, for any size.
        latents: `[B, C, h, w]`.
        tile: Side of a tile, in latent cells.
        overlap: What neighbouring tiles have in common at least, in latent cells.

    Returns:
        The image, float32 `[B, 3, H, W]`, whatever `decode` returns.
    """
    height, width = latents.shape[-2:]
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    image = total = None
    for top in rows:
        for left in columns:
            part = decode(latents[..., top : top + tile, left : left + tile])
            scale = part.shape[-1] // min(tile, width)
            if image is None or total is None:
                image = part.new_zeros(*part.shape[:2], height * scale, width * scale, dtype=torch.float32)
                total = torch.zeros_like(image[:1, :1])
            down = _ramp(rows, top, part.shape[-2], scale, part.device)
            across = _ramp(columns, left, part.shape[-1], scale, part.device)
            weight = down[:, None] * across[None, :]
            y, x = top * scale, left * scale
            image[..., y : y + len(down), x : x + len(across)] += part.float() * weight
            total[..., y : y + len(down), x : x + len(across)] += weight
    assert image is not None and total is not None, "there is one tile at least"
    return image / total


def _ramp(starts: list[int], start: int, length: int, scale: int, device: torch.device) -> Tensor:
    """Return a tile's weights along an axis, `[length]`: 1, but rising and falling where it has neighbours."""
    weights = torch.ones(length, device=device)
    shared = {second: first * scale + length - second * scale for first, second in pairwise(starts)}
    if start in shared:
        rise = (torch.arange(shared[start], device=device) + 0.5) / shared[start]
        weights[: len(rise)] *= rise
    after = next((second for second in starts if second > start), None)
    if after is not None:
        fall = (torch.arange(shared[after], device=device) + 0.5) / shared[after]
        weights[length - len(fall) :] *= fall.flip(0)
    return weights
