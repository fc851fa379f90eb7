"""Tiles cover every cell, weigh to one, and for local decoders give what decoding at once gives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from vega_diffusion.inference import tiles
from vega_diffusion.inference.tiles import tile_starts


@settings(max_examples=40)
@given(st.integers(1, 200), st.integers(2, 64), st.data())
def test_tiles_cover_an_axis_and_overlap_enough(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    assert all(second - first <= tile - overlap for first, second in pairwise(starts))
    assert all(first < second for first, second in pairwise(starts))


def decode_tiled(decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int, overlap: int) -> Tensor:
    """The function under test, of tensors."""
    return torch.from_numpy(
        tiles.decode_tiled(lambda part: decode(torch.from_numpy(part)).numpy(), latents.numpy(), tile, overlap)
    )


def enlarge(latents: Tensor) -> Tensor:
    """Each cell as 8 x 8 equal pixels: a decoder without any reach."""
    return functional.interpolate(latents[:, :3], scale_factor=8, mode="nearest")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 21), (33, 20), (5, 40)])
@pytest.mark.parametrize("overlap", [0, 2, 5])
def test_a_decoder_without_reach_gives_the_same_in_tiles(height: int, width: int, overlap: int) -> None:
    latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    tiled = decode_tiled(enlarge, latents, 8, overlap)
    torch.testing.assert_close(tiled, enlarge(latents))
    assert decode_tiled(lambda x: enlarge(x).half(), latents, 8, overlap).dtype == torch.float32


def test_what_a_border_spoils_hardly_counts() -> None:
    # Padding with zeros spoils the cells next to a tile's border; there the weights are near zero.
    blur = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
    nn.init.constant_(blur.weight, 1 / 9)
    latents = torch.ones(1, 4, 16, 32)
    with torch.no_grad():
        whole = enlarge(blur(latents[:, :3]))
        tiled = decode_tiled(lambda x: enlarge(blur(x[:, :3])), latents, 16, 8)
        abutted = decode_tiled(lambda x: enlarge(blur(x[:, :3])), latents, 16, 0)
    assert (abutted - whole).abs().max() > 0.3
    assert (tiled - whole).abs().max() < 0.05


def test_memory_is_that_of_one_tile() -> None:
    sizes = []

    def decode(latents: Tensor) -> Tensor:
        sizes.append(tuple(latents.shape[-2:]))
        return enlarge(latents)

    decode_tiled(decode, torch.zeros(1, 4, 40, 24), 16, 4)
    assert set(sizes) == {(16, 16)}
