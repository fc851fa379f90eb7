"""Ways to spoil a picture on purpose, to see that the ruler drops where it should and only there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vega_diffusion.diffusion.randomness import derive_seed

Degradation = Callable[[Tensor], Tensor]


def blur(pixels: Tensor, side: int = 14) -> Tensor:
    """Shrink to `side` px and enlarge again: shapes go, the background's colour stays.

    Args:
        pixels: `[B, 3, H, W]` in [-1, 1].
        side: Of the small picture, in px.
    """
    small = functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
    return functional.interpolate(small, size=pixels.shape[-2:], mode="bilinear")


def noise(pixels: Tensor, share: float = 0.7) -> Tensor:
    """Mix with uniform noise, the same for every picture."""
    generator = torch.Generator().manual_seed(derive_seed(0, "degradation"))
    drawn = torch.rand(pixels.shape[1:], generator=generator) * 2 - 1
    return pixels * (1 - share) + drawn * share


def turn_colours(pixels: Tensor) -> Tensor:
    """Swap the channels (red to green, green to blue, blue to red): colours are wrong, shapes and places stay."""
    return pixels[:, [2, 0, 1]]


def mirror(pixels: Tensor) -> Tensor:
    """Swap left and right: only left and right are wrong."""
    return pixels.flip(-1)


DEGRADATIONS: dict[str, Degradation] = {"blur": blur, "noise": noise, "turn_colours": turn_colours, "mirror": mirror}
