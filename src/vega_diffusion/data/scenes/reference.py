"""The renderer again, one picture at a time in plain numpy and Pillow: slow, simple, and what `renderer` must match."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from vega_diffusion.data.scenes.atlas import SpriteAtlas, level_for
from vega_diffusion.data.scenes.places import place_picture
from vega_diffusion.data.scenes.renderer import pure_hue, sprite_slug
from vega_diffusion.data.scenes.scene import BACKGROUNDS, CANVAS_SIZE, PlacedObject, Scene


def render_reference(scene: Scene, atlas: SpriteAtlas) -> np.ndarray:
    """Draw one scene.

    Returns:
        uint8 [128, 128, 3]; the batched renderer gives the same values within one level.
    """
    top, left = scene.crop_top_left
    if scene.background in BACKGROUNDS:
        canvas = np.full((CANVAS_SIZE, CANVAS_SIZE, 3), np.array(BACKGROUNDS[scene.background]) / 255)
    else:
        canvas = place_picture(scene.background)[:, top : top + CANVAS_SIZE, left : left + CANVAS_SIZE]
        canvas = np.moveaxis(canvas, 0, -1).astype(np.float64)
    for placed in scene.objects:
        sprite = atlas.pyramid[level_for(placed.box[2] - placed.box[0])][atlas.row(scene.style, sprite_slug(placed))]
        pixels = np.moveaxis(sprite.cpu().numpy(), 0, -1).astype(np.float64) / 255
        if placed.colour:
            pixels = _with_hue(pixels, pure_hue(placed.colour))
        for y in range(CANVAS_SIZE):
            for x in range(CANVAS_SIZE):
                r, g, b, alpha = _lookup(pixels, placed, x + left, y + top)
                if alpha > 0:
                    canvas[y, x] = canvas[y, x] * (1 - alpha) + np.array([r, g, b])
    side = min(scene.original_size)
    if side < CANVAS_SIZE:
        canvas = _soften(canvas, side)
    return np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)


def _lookup(pixels: np.ndarray, placed: PlacedObject, x: int, y: int) -> np.ndarray:
    """Bilinear value of the sprite under the centre of canvas pixel (x, y); nothing outside the sprite."""
    side = len(pixels)
    x0, y0, x1, y1 = placed.box
    across = (x + 0.5 - x0) / (x1 - x0)
    column = (1 - across if placed.flipped else across) * side - 0.5
    row = (y + 0.5 - y0) / (y1 - y0) * side - 0.5
    result = np.zeros(4)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < side and 0 <= c < side:
                result += pixels[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return result


def _with_hue(pixels: np.ndarray, pure: tuple[float, float, float]) -> np.ndarray:
    """HSV with the hue replaced; premultiplied values scale value and chroma alike, so alpha drops out."""
    result = pixels.copy()
    high, low = pixels[..., :3].max(-1), pixels[..., :3].min(-1)
    for channel in range(3):
        result[..., channel] = high - (high - low) * (1 - pure[channel])
    return result


def _soften(canvas: np.ndarray, side: int) -> np.ndarray:
    channels = []
    for channel in range(3):
        picture = Image.fromarray(canvas[..., channel].astype(np.float32), mode="F")
        small = picture.resize((side, side), Image.Resampling.BILINEAR)
        channels.append(np.asarray(small.resize((CANVAS_SIZE, CANVAS_SIZE), Image.Resampling.BILINEAR)))
    return np.stack(channels, axis=-1).astype(np.float64)
