"""Decoding a large picture in overlapping tiles that are blended, so that memory stays that of one tile.

Arithmetic on arrays alone: which decoder runs and when tiles are wanted is `vae_policy`'s matter. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]


def tile_cells(tile_px: int, downscale: int) -> tuple[int, int]:
    """Return a tile's side, and what neighbours have in common at least, in latent cells.

    Args:
        tile_px: Side of a tile, px.
        downscale: Pixels of a side that a cell stands for.
    """
    tile = max(1, tile_px // downscale)
    return tile, tile // 4


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


def decode_tiled(decode: Callable[[Array], Array], latents: Array, tile: int, overlap: int) -> Array:
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
                image = numpy.zeros((*part.shape[:2], height * scale, width * scale), numpy.float32)
                total = numpy.zeros_like(image[:1, :1])
            down = _ramp(rows, top, part.shape[-2], scale)
            across = _ramp(columns, left, part.shape[-1], scale)
            weight = down[:, None] * across[None, :]
            y, x = top * scale, left * scale
            image[..., y : y + len(down), x : x + len(across)] += part.astype(numpy.float32) * weight
            total[..., y : y + len(down), x : x + len(across)] += weight
    assert image is not None and total is not None, "there is one tile at least"
    return image / total


def _ramp(starts: list[int], start: int, length: int, scale: int) -> Array:
    """Return a tile's weights along an axis, `[length]`: 1, but rising and falling where it has neighbours."""
    weights = numpy.ones(length, numpy.float32)
    shared = {second: first * scale + length - second * scale for first, second in pairwise(starts)}
    if start in shared:
        weights[: shared[start]] *= _rise(shared[start])
    after = next((second for second in starts if second > start), None)
    if after is not None:
        weights[length - shared[after] :] *= _rise(shared[after])[::-1]
    return weights


def _rise(length: int) -> Array:
    return (numpy.arange(length, dtype=numpy.float32) + numpy.float32(0.5)) / numpy.float32(length)
