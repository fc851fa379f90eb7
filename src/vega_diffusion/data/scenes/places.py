"""The five drawn backgrounds: meadow, beach, snow, starry night, open sea; plain arithmetic, no art files.

Pictures are float32 in [0, 1], [3, side, side], deterministic, and larger than any crop window needs.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from vega_diffusion.data.scenes.scene import CANVAS_SIZE, MAX_CROP

SIDE = CANVAS_SIZE + MAX_CROP


@cache
def place_picture(name: str) -> np.ndarray:
    """Return the background picture of a place, float32 [3, 160, 160] in [0, 1] (do not write into it)."""
    drawn = _PLACES[name]()
    picture = np.clip(np.moveaxis(drawn, -1, 0), 0, 1).astype(np.float32)
    picture.setflags(write=False)
    return picture


def _axes() -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, columns) as fractions of the canvas, [side, side] each."""
    ticks = (np.arange(SIDE) + 0.5) / CANVAS_SIZE
    return np.meshgrid(ticks, ticks, indexing="ij")


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int], along: np.ndarray) -> np.ndarray:
    share = np.clip(along, 0, 1)[..., None]
    return (np.array(top) * (1 - share) + np.array(bottom) * share) / 255


def _over(below: np.ndarray, above: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Blend by an edge in px: 1 where `above` shows, softened over one pixel."""
    share = np.clip(edge + 0.5, 0, 1)[..., None]
    return below * (1 - share) + above * share


def _grass() -> np.ndarray:
    rows, columns = _axes()
    sky = _gradient((120, 190, 246), (206, 234, 252), rows / 0.62)
    hill = 0.60 + 0.035 * np.sin(columns * 5.2 + 0.6)
    ground = _gradient((132, 200, 84), (74, 150, 56), (rows - 0.58) / 0.6)
    return _over(sky, ground, (rows - hill) * CANVAS_SIZE)


def _beach() -> np.ndarray:
    rows, columns = _axes()
    sky = _gradient((132, 204, 250), (220, 242, 252), rows / 0.42)
    sea = _gradient((42, 150, 200), (92, 206, 214), (rows - 0.42) / 0.22)
    sand = _gradient((246, 222, 164), (226, 190, 120), (rows - 0.62) / 0.6)
    picture = _over(sky, sea, (rows - 0.42) * CANVAS_SIZE)
    shore = 0.63 + 0.02 * np.sin(columns * 7.0)
    foam = np.broadcast_to(np.array([1.0, 1.0, 1.0]), picture.shape)
    picture = _over(picture, foam, (rows - shore + 0.02) * CANVAS_SIZE)
    return _over(picture, sand, (rows - shore) * CANVAS_SIZE)


def _snow() -> np.ndarray:
    rows, columns = _axes()
    sky = _gradient((150, 176, 206), (214, 226, 238), rows / 0.6)
    drift = 0.62 + 0.03 * np.sin(columns * 4.1 + 2.0)
    ground = _gradient((252, 253, 255), (222, 234, 246), (rows - 0.6) / 0.6)
    picture = _over(sky, ground, (rows - drift) * CANVAS_SIZE)
    return _dots(picture, 46, (1.1, 1.9), (255, 255, 255), seed=11, below=0.62)


def _night() -> np.ndarray:
    rows, _ = _axes()
    picture = _gradient((12, 14, 44), (44, 42, 104), rows)
    return _dots(picture, 60, (0.6, 1.5), (255, 248, 214), seed=5, below=9.0)


def _sea() -> np.ndarray:
    rows, columns = _axes()
    sky = _gradient((164, 214, 248), (226, 244, 252), rows / 0.34)
    water = _gradient((40, 126, 196), (14, 62, 132), (rows - 0.34) / 0.8)
    stripe = 0.5 + 0.5 * np.sin(rows * 62.0 + 1.6 * np.sin(columns * 9.0))
    water = water + 0.09 * (stripe**6)[..., None]
    return _over(sky, water, (rows - 0.34) * CANVAS_SIZE)


def _dots(
    picture: np.ndarray, count: int, radii: tuple[float, float], rgb: tuple[int, int, int], *, seed: int, below: float
) -> np.ndarray:
    """Scatter soft round dots (stars, snowflakes) by a fixed seed over the rows above `below`."""
    rows, columns = _axes()
    draws = np.random.default_rng(seed).random((count, 3))
    limit = min(below, SIDE / CANVAS_SIZE)
    colour = np.array(rgb) / 255
    for y, x, r in draws:
        distance = np.hypot(rows - y * limit, columns - x * SIDE / CANVAS_SIZE) * CANVAS_SIZE
        radius = radii[0] + r * (radii[1] - radii[0])
        picture = _over(picture, np.broadcast_to(colour, picture.shape), radius - distance)
    return picture


_PLACES = {"grass": _grass, "beach": _beach, "snow": _snow, "night": _night, "sea": _sea}
