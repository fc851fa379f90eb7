"""All sprites in memory: a pyramid of premultiplied pictures, looked up by style and icon slug.

What lives here: reading sprite sheets, the pyramid, and what is measured of a sprite (can it be recoloured, does it
stand out). What does not: fetching (`icons`), compositing (`renderer`), choosing (`grammar`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.data.scenes.icons import SHEET_COLUMNS, SPRITE_PX
from vega_diffusion.errors import MissingFile, UnreadableModel, VegaError

LEVELS_PX = (128, 64, 32, 16)


def sample_folder() -> Path:
    """Return the folder of the small sprite sample that comes with the package."""
    return Path(str(files("vega_diffusion.data.scenes") / "sample"))


@dataclass(frozen=True)
class SpriteAtlas:
    """Sprites of several styles.

    Args:
        index: (style, slug) -> row in `sprites`.
        sprites: uint8 [N, 4, 128, 128], RGB premultiplied by alpha.
    """

    index: dict[tuple[str, str], int]
    sprites: Tensor

    @classmethod
    def load(
        cls, folder: Path | None = None, *, styles: Sequence[str] | None = None, slugs: Iterable[str] | None = None
    ) -> SpriteAtlas:
        """Read sprite sheets.

        Args:
            folder: What `vega data icons` wrote; None takes the sample in the package.
            styles: Only these styles, in this order; None takes all.
            slugs: Only these icons; None takes all. A slug that a style does not draw is simply not in the index.

        Raises:
            MissingFile: No sheets there.
            UnreadableModel: A sheet is damaged.
            VegaError: A style is not there.
        """
        source = folder or sample_folder()
        try:
            listing = json.loads((source / "index.json").read_text())
        except (OSError, ValueError) as error:
            raise MissingFile(
                f"{source}: no sprite sheets there (index.json cannot be read); run `vega data icons`"
            ) from error
        wanted = None if slugs is None else set(slugs)
        index: dict[tuple[str, str], int] = {}
        parts: list[np.ndarray] = []
        for style in styles or list(listing["styles"]):
            if style not in listing["styles"]:
                known = ", ".join(listing["styles"])
                raise VegaError(f"style: {style!r} is not in {source}; allowed: {known}; run `vega data icons`")
            names = listing["styles"][style]["slugs"]
            sheet = _read_sheet(source / f"{style}.webp")
            rows = [number for number, slug in enumerate(names) if wanted is None or slug in wanted]
            for number in rows:
                index[style, names[number]] = len(index)
            parts.append(_cut(sheet, rows))
        pixels = np.concatenate(parts) if parts else np.zeros((0, SPRITE_PX, SPRITE_PX, 4), np.uint8)
        return cls(index, torch.from_numpy(_premultiply(pixels)).permute(0, 3, 1, 2).contiguous())

    @cached_property
    def pyramid(self) -> dict[int, Tensor]:
        """Side in px -> uint8 [N, 4, side, side]; each level is the 2x2 mean of the one above."""
        levels = {LEVELS_PX[0]: self.sprites}
        for above, side in pairwise(LEVELS_PX):
            source = levels[above]
            halves = torch.empty((len(source), 4, side, side), dtype=torch.uint8, device=source.device)
            for start in range(0, len(source), 256):
                chunk = source[start : start + 256].float()
                halves[start : start + 256] = torch.nn.functional.avg_pool2d(chunk, 2).round().to(torch.uint8)
            levels[side] = halves
        return levels

    def row(self, style: str, slug: str) -> int:
        """Return the row of a sprite.

        Raises:
            VegaError: This style does not draw it, or the atlas holds less than the scenes need.
        """
        try:
            return self.index[style, slug]
        except KeyError:
            raise VegaError(
                f"sprite: {slug!r} is not drawn in style {style!r} by this atlas of {len(self.index)} sprites; "
                "run `vega data icons`, or choose another style"
            ) from None

    def to(self, device: torch.device | str) -> SpriteAtlas:
        """Return the atlas with its pixels on another device."""
        return SpriteAtlas(self.index, self.sprites.to(device))


def level_for(side_px: float) -> int:
    """Return the smallest pyramid level that is not smaller than what is drawn (so it is shrunk by less than 2)."""
    return next((level for level in reversed(LEVELS_PX) if level >= side_px), LEVELS_PX[0])


def recolour(sprite: Tensor, pure: Tensor) -> Tensor:
    """Give every pixel the hue `pure`, keeping HSV value and saturation.

    With hue h fixed, HSV to RGB is v - (v - min) (1 - pure_c) for each channel c: linear in premultiplied values.

    Args:
        sprite: [..., 4, H, W] premultiplied RGBA, any scale.
        pure: [..., 3] the hue as a fully saturated RGB colour in [0, 1].

    Returns:
        The recoloured sprite, same shape.
    """
    rgb, alpha = sprite[..., :3, :, :], sprite[..., 3:, :, :]
    value = rgb.amax(dim=-3, keepdim=True)
    chroma = value - rgb.amin(dim=-3, keepdim=True)
    return torch.cat([value - chroma * (1 - pure[..., None, None]), alpha], dim=-3)


def dominant_hue_share(sprite: np.ndarray) -> tuple[float, float]:
    """Return (share of coloured pixels among opaque ones, share of the coloured ones near the commonest hue).

    Args:
        sprite: uint8 [4, H, W] premultiplied.
    """
    share, hues = coloured_hues(sprite)
    if not len(hues):
        return 0.0, 0.0
    counts = np.histogram(hues, bins=36, range=(0, 360))[0]
    near = max(sum(np.roll(counts, shift)[peak] for shift in (-2, -1, 0, 1, 2)) for peak in range(36))
    return share, float(near / counts.sum())


def coloured_hues(sprite: np.ndarray) -> tuple[float, np.ndarray]:
    """Return (share of coloured pixels among opaque ones, hues of the coloured ones in degrees, float32 [N]).

    Args:
        sprite: uint8 [4, H, W] premultiplied.
    """
    alpha = sprite[3].astype(np.float32)
    solid = alpha > 128
    if not solid.any():
        return 0.0, np.empty(0, np.float32)
    rgb = sprite[:3].astype(np.float32)[:, solid] / alpha[solid]
    high, low = rgb.max(0), rgb.min(0)
    chroma = high - low
    coloured = chroma > 0.2 * np.maximum(high, 0.2)
    red, green, blue = rgb[:, coloured]
    top, width = high[coloured], chroma[coloured]
    sixth = np.where(
        top == red,
        (green - blue) / width % 6,
        np.where(top == green, (blue - red) / width + 2, (red - green) / width + 4),
    )
    return float(coloured.mean()), sixth * 60


def _read_sheet(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGBA"))
    except (OSError, ValueError) as error:
        raise UnreadableModel(
            f"{path}: the sprite sheet cannot be read ({error}); run `vega data icons` again"
        ) from error


def _cut(sheet: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    grid = sheet.reshape(-1, SPRITE_PX, SHEET_COLUMNS, SPRITE_PX, 4).swapaxes(1, 2)
    return grid.reshape(-1, SPRITE_PX, SPRITE_PX, 4)[list(rows)]


def _premultiply(pixels: np.ndarray) -> np.ndarray:
    result = pixels.copy()
    for start in range(0, len(pixels), 256):
        chunk = pixels[start : start + 256].astype(np.uint16)
        result[start : start + 256, ..., :3] = (chunk[..., :3] * chunk[..., 3:] + 127) // 255
    return result
