"""Filter styles: pure functions of a rendered batch that make it look like neon, a blueprint, a sketch or pixel art.

Objects, boxes and places stay what they are. Neon, blueprint and sketch hide which colours there were; pixel keeps
them. They are styles that no generator of the mini family sees before it is adapted to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

FILTERS: tuple[str, ...] = ("neon", "blueprint", "sketch", "pixel")
COLOURLESS: frozenset[str] = frozenset({"neon", "blueprint", "sketch"})
"""Filters behind which plain backgrounds and object colours cannot be named."""

_GREY = (0.299, 0.587, 0.114)
_PIXEL_PX = 4
_PIXEL_LEVELS = 7


def apply_filter(name: str, pixels: Tensor) -> Tensor:
    """Return pictures in a filter style.

    Args:
        name: One of `FILTERS`.
        pixels: float32 `[B, 3, H, W]` in [-1, 1]; H and W divide by 4.

    Returns:
        The same shape and range.
    """
    drawn = _FILTERS[name]((pixels + 1) / 2)
    return drawn.clamp(0, 1) * 2 - 1


def _neon(picture: Tensor) -> Tensor:
    """Glowing tubes along the outlines on near black, from cyan at the top to magenta at the bottom."""
    lines = _outlines(picture, 6.0)
    tube = lines.pow(1.2)
    glow = 0.75 * blurred(tube, 2.0) + 0.9 * blurred(tube, 5.0)
    down = torch.linspace(0, 1, picture.shape[-2], device=picture.device)[None, None, :, None]
    top = torch.tensor([0.05, 0.95, 1.0], device=picture.device)[None, :, None, None]
    bottom = torch.tensor([1.0, 0.1, 0.85], device=picture.device)[None, :, None, None]
    colour = top * (1 - down) + bottom * down
    night = torch.tensor([0.03, 0.01, 0.07], device=picture.device)[None, :, None, None]
    return night + colour * (glow + 0.65 * tube) + 0.45 * tube.pow(3)


def _blueprint(picture: Tensor) -> Tensor:
    """White drawing lines on blueprint blue over a faint grid."""
    lines = _outlines(picture, 7.0)
    height, width = picture.shape[-2:]
    blue = torch.tensor([0.07, 0.22, 0.56], device=picture.device)[None, :, None, None]
    rows = (torch.arange(height, device=picture.device) % 16 == 0)[:, None]
    columns = (torch.arange(width, device=picture.device) % 16 == 0)[None]
    grid = 0.10 * (rows | columns).float()[None, None]
    ground = blue + grid
    white = torch.tensor([0.93, 0.97, 1.0], device=picture.device)[None, :, None, None]
    return ground + lines * (white - ground)


def _sketch(picture: Tensor) -> Tensor:
    """Graphite on paper: soft outlines, and hatching where the picture is dark."""
    height, width = picture.shape[-2:]
    grey = _grey(picture)
    lines = _outlines(picture, 5.0)
    down = torch.arange(height, device=picture.device)[:, None]
    across = torch.arange(width, device=picture.device)[None]
    first = ((down + across) % 6 < 2).float()[None, None]
    second = ((down - across) % 6 < 2).float()[None, None]
    dark = 1 - grey
    hatching = 0.22 * first * (dark > 0.45) + 0.22 * second * (dark > 0.75)
    paper = torch.tensor([0.965, 0.955, 0.925], device=picture.device)[None, :, None, None]
    graphite = torch.tensor([0.22, 0.22, 0.24], device=picture.device)[None, :, None, None]
    ink = (0.9 * lines + hatching * (1 - lines)).clamp(0, 1)
    return paper + ink * (graphite - paper)


def _pixel(picture: Tensor) -> Tensor:
    """Squares of 4 px in a few levels of every channel."""
    small = functional.avg_pool2d(picture, _PIXEL_PX)
    levels = (small * (_PIXEL_LEVELS - 1)).round() / (_PIXEL_LEVELS - 1)
    return levels.repeat_interleave(_PIXEL_PX, -2).repeat_interleave(_PIXEL_PX, -1)


_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "neon": _neon,
    "blueprint": _blueprint,
    "sketch": _sketch,
    "pixel": _pixel,
}


def _grey(picture: Tensor) -> Tensor:
    weights = torch.tensor(_GREY, device=picture.device)[None, :, None, None]
    return (picture * weights).sum(1, keepdim=True)


def _outlines(picture: Tensor, gain: float) -> Tensor:
    """Return how strongly any channel changes, `[B, 1, H, W]` in 0..1: Sobel's gradient, squashed."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=picture.device) / 8
    channels = picture.shape[1]
    padded = functional.pad(picture, (1, 1, 1, 1), mode="replicate")
    across = functional.conv2d(padded, kernel.expand(channels, 1, 3, 3), groups=channels)
    down = functional.conv2d(padded, kernel.T.expand(channels, 1, 3, 3), groups=channels)
    strength = (across.square() + down.square()).amax(1, keepdim=True).sqrt()
    return (strength * gain - 0.12).clamp(0, 1)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Return pictures `[..., H, W]` after a Gaussian blur of `sigma` px; beyond the edge there is nothing to mix in."""
    rows, columns = (_gaussian(side, sigma).to(pixels) for side in pixels.shape[-2:])
    return rows @ pixels @ columns.T


@cache
def _gaussian(side: int, sigma: float) -> Tensor:
    ticks = torch.arange(side, dtype=torch.float32)
    weights = (-0.5 * ((ticks[:, None] - ticks[None]) / sigma).square()).exp()
    return weights / weights.sum(1, keepdim=True)
