"""Draws a batch of scenes with torch, on any device: what training uses.

`reference.render_reference` draws the same pixels one picture at a time in plain numpy; a test holds the two together.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vega_diffusion.data.scenes.atlas import SpriteAtlas, level_for, recolour
from vega_diffusion.data.scenes.places import place_picture
from vega_diffusion.data.scenes.scene import BACKGROUNDS, CANVAS_SIZE, HUES, PLACES, PlacedObject, Scene
from vega_diffusion.data.scenes.vocabulary import load_vocabulary


def pure_hue(colour: str) -> tuple[float, float, float]:
    """Return an object colour as a fully saturated RGB colour in [0, 1]."""
    return colorsys.hsv_to_rgb(HUES[colour] / 360, 1.0, 1.0)


def sprite_slug(placed: PlacedObject) -> str:
    """Return the icon that draws an object: its variant, or its noun's own slug."""
    return placed.variant or load_vocabulary().noun(placed.noun).slug


class SceneRenderer:
    """Composites sprites over backgrounds.

    Args:
        atlas: The sprites; rendering runs on its device.
    """

    def __init__(self, atlas: SpriteAtlas) -> None:
        self.atlas = atlas
        self.device = atlas.sprites.device
        self._places = {name: torch.from_numpy(place_picture(name).copy()).to(self.device) for name in PLACES}
        self._colours = {name: torch.tensor(rgb, device=self.device) / 255 for name, rgb in BACKGROUNDS.items()}

    @torch.no_grad()
    def render(self, scenes: Sequence[Scene]) -> Tensor:
        """Draw scenes.

        Returns:
            float32 [B, 3, 128, 128] in [-1, 1], each value one of the 256 levels of an 8-bit picture.
        """
        canvas = torch.stack([self._background(scene) for scene in scenes])
        depth = max((len(scene.objects) for scene in scenes), default=0)
        for layer in range(depth):
            # Same pyramid level -> one batched grid_sample; painter's order is kept because layers go one by one.
            groups: dict[int, list[int]] = {}
            for number, scene in enumerate(scenes):
                if layer < len(scene.objects):
                    x0, _, x1, _ = scene.objects[layer].box
                    groups.setdefault(level_for(x1 - x0), []).append(number)
            for level, numbers in groups.items():
                chosen = [scenes[number] for number in numbers]
                self._paint(canvas, numbers, chosen, layer, level)
        for number, scene in enumerate(scenes):
            if min(scene.original_size) < CANVAS_SIZE:
                canvas[number] = soften(canvas[number], min(scene.original_size))
        return (canvas * 255).round().clamp(0, 255) / 127.5 - 1

    def _background(self, scene: Scene) -> Tensor:
        if scene.background in self._colours:
            return self._colours[scene.background][:, None, None].expand(3, CANVAS_SIZE, CANVAS_SIZE)
        top, left = scene.crop_top_left
        return self._places[scene.background][:, top : top + CANVAS_SIZE, left : left + CANVAS_SIZE]

    def _paint(self, canvas: Tensor, numbers: list[int], scenes: list[Scene], layer: int, level: int) -> None:
        objects = [scene.objects[layer] for scene in scenes]
        rows = [self.atlas.row(scene.style, sprite_slug(placed)) for scene, placed in zip(scenes, objects, strict=True)]
        sprites = self.atlas.pyramid[level][torch.tensor(rows, device=self.device)].float() / 255
        coloured = [number for number, placed in enumerate(objects) if placed.colour]
        if coloured:
            pure = torch.tensor([pure_hue(objects[number].colour or "") for number in coloured], device=self.device)
            sprites[coloured] = recolour(sprites[coloured], pure)
        grid = torch.stack([_grid(placed, scene.crop_top_left) for placed, scene in zip(objects, scenes, strict=True)])
        layer_rgba = functional.grid_sample(
            sprites, grid.to(self.device), mode="bilinear", padding_mode="zeros", align_corners=False
        )
        canvas[numbers] = canvas[numbers] * (1 - layer_rgba[:, 3:]) + layer_rgba[:, :3]


def _grid(placed: PlacedObject, crop_top_left: tuple[int, int]) -> Tensor:
    """Return where each canvas pixel centre falls in the sprite, [-1, 1] coordinates, float32 [128, 128, 2]."""
    top, left = crop_top_left
    x0, y0, x1, y1 = placed.box
    ticks = torch.arange(CANVAS_SIZE, dtype=torch.float32) + 0.5
    across = (ticks + left - x0) / (x1 - x0) * 2 - 1
    down = (ticks + top - y0) / (y1 - y0) * 2 - 1
    if placed.flipped:
        across = -across
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([columns, rows], dim=-1)


def soften(picture: Tensor, side: int) -> Tensor:
    """Show a picture as if it had been `side` px wide: shrink it, then enlarge it again.

    Args:
        picture: [3, 128, 128] in [0, 1].
        side: The smaller size in px.
    """
    small = functional.interpolate(picture[None], size=(side, side), mode="bilinear", antialias=True)
    return functional.interpolate(small, size=picture.shape[-2:], mode="bilinear", antialias=True)[0]
