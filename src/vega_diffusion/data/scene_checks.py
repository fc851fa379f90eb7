"""Pictures with exact ground truth for the checker: every style, crowds, filters, subjects, and a share of worn ones.

What lives here: which scene stands at a position (`check_scene`), its targets, and the source of batches. Unlike the
sources that generators learn from, it shows held-out combinations, the held-out style and the subjects: a judge must
know them all.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scene_stream import scene_mix
from vega_diffusion.data.scenes.atlas import SpriteAtlas, recolour
from vega_diffusion.data.scenes.checker_classes import DRAWN_STYLES, NATURAL, OTHER, checker_spec, class_indices
from vega_diffusion.data.scenes.crowd import MOST, crowd_scene
from vega_diffusion.data.scenes.filters import COLOURLESS, FILTERS, apply_filter
from vega_diffusion.data.scenes.grammar import SceneMix, sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer, pure_hue, sprite_slug
from vega_diffusion.data.scenes.scene import BACKGROUNDS, CANVAS_SIZE, HUES, Box, PlacedObject, Scene
from vega_diffusion.data.scenes.sprite_facts import LEVEL_PX, load_sprite_facts
from vega_diffusion.data.scenes.subjects import load_subjects, place_subject, shown_name, with_subjects
from vega_diffusion.data.scenes.targets import IGNORE
from vega_diffusion.data.scenes.wear import spoiled, worn
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.errors import VegaError
from vega_diffusion.specs.data import SceneChecksSpec

SAME_LOOK = 0.10  # a recolouring that moves no channel further than this on average cannot be seen
PROBES = 32
LEAST_FILTERED_PX = 40  # smaller objects are mush behind a filter


class SceneChecks:
    """Sample p of the run is the picture of check scene p with its targets; nothing is stored.

    Args:
        spec: Rates and mix.
        atlas: Sprites on the device that draws.
        version: What decides the sprites, for the fingerprint.

    Raises:
        VegaError: The atlas lacks a style of the mix.
    """

    def __init__(self, spec: SceneChecksSpec, atlas: SpriteAtlas, version: str) -> None:
        self.spec, self.mix, self.version = spec, check_mix(spec), version
        missing = sorted(set(self.mix.styles) - {style for style, _ in atlas.index})
        if missing:
            raise VegaError(
                f"data.mix.styles: no sprites of {', '.join(missing)} here; run `vega data icons`, or name other styles"
            )
        self.atlas = with_subjects(atlas, DRAWN_STYLES)
        self.renderer = SceneRenderer(self.atlas)
        self._extents = sprite_extents(self.atlas)
        self._alike = same_look(self.atlas, self.mix.styles)

    def varied(self, **changes: float) -> SceneChecks:
        """Return the same source with other rates; sprites are not measured again."""
        other = copy(self)
        other.spec = self.spec.model_copy(update=changes)
        return other

    def load(self, positions: Sequence[int]) -> Batch:
        """Return pictures and targets.

        `pixels` float32 `[B, 3, 128, 128]` in [-1, 1]; `boxes` `[B, 9, 4]` in px, all zero where there is no object;
        `nouns` and `colours` `[B, 9]`, `style` and `background` `[B]`: class indices, or `IGNORE`; `judged` `[B]`:
        whether it can be said where objects are.
        """
        plans = [plan_check(self.spec, self.mix, position) for position in positions]
        pixels = self.renderer.render([scene for scene, _, _ in plans])
        for name in FILTERS:
            rows = [row for row, (_, filter_name, _) in enumerate(plans) if filter_name == name]
            if rows:
                pixels[rows] = apply_filter(name, pixels[rows])
        seed = derive_seed(self.spec.seed, "checks")
        rows = [row for row, (_, _, broken) in enumerate(plans) if broken]
        if rows:
            pixels[rows] = spoiled(pixels[rows], PositionRng(seed, [positions[row] for row in rows]))
        rows = [
            row for row, p in enumerate(positions) if _rng(self.spec.seed, p, "worn").random() < self.spec.worn_rate
        ]
        if rows:
            pixels[rows] = worn(pixels[rows], PositionRng(seed, [positions[row] for row in rows]))
        targets = [self.targets(*plan) for plan in plans]
        tensors = {name: torch.stack([target[name] for target in targets]) for name in targets[0]}
        return Batch([f"check {self.spec.seed}/{p}" for p in positions], {"pixels": pixels, **tensors})

    def targets(self, scene: Scene, filter_name: str | None, broken: bool) -> dict[str, Tensor]:
        """Return what a picture shows, as `load` does for a batch, on the CPU.

        Args:
            scene: The scene.
            filter_name: The filter that its picture went through, or None.
            broken: The picture was spoiled: an object is something else, where it is cannot be said.
        """
        indices = class_indices()
        boxes = torch.zeros(MOST, 4)
        nouns, colours = torch.full((2, MOST), IGNORE).unbind()
        for number, placed in enumerate(scene.objects):
            row = self.atlas.row(scene.style, sprite_slug(placed))
            box = seen_box(placed.box, self._extents[row], scene.crop_top_left)
            boxes[number] = torch.tensor(box)
            nouns[number] = indices["nouns"][OTHER if broken else shown_name(placed, scene.style)]
            unsure = broken or filter_name in COLOURLESS or (placed.colour is None and row in self._alike)
            colours[number] = IGNORE if unsure else indices["colours"][placed.colour or NATURAL]
        foreign = any((placed.variant or "").startswith("subject/") for placed in scene.objects)
        style = filter_name or (None if foreign or broken else scene.style)
        plain = scene.background in BACKGROUNDS
        hidden = (plain and filter_name in COLOURLESS) or (broken and not plain)
        return {
            "boxes": boxes,
            "nouns": nouns,
            "colours": colours,
            "style": torch.tensor(IGNORE if style is None else indices["styles"][style]),
            "background": torch.tensor(IGNORE if hidden else indices["backgrounds"][scene.background]),
            "judged": torch.tensor(not broken),
        }

    def fingerprint(self) -> str:
        """Return seed, sprites, classes and a hash of the first scenes."""
        plans = [plan_check(self.spec, self.mix, position) for position in range(PROBES)]
        said = [[scene.to_dict(), name, broken] for scene, name, broken in plans]
        text = json.dumps([said, self.spec.to_json(), checker_spec().to_json()], sort_keys=True)
        return f"scene_checks {self.version} scenes={hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_mix(spec: SceneChecksSpec) -> SceneMix:
    """Return the mix of a checker's scenes: all seven styles unless the recipe names some."""
    mix = scene_mix(spec.mix)
    return mix if spec.mix.styles is not None else replace(mix, styles=DRAWN_STYLES)


def plan_check(spec: SceneChecksSpec, mix: SceneMix, position: int) -> tuple[Scene, str | None, bool]:
    """Return the scene at a position, the filter that it goes through or None, and whether it is spoiled."""
    rng = _rng(spec.seed, position, "plan")
    if rng.random() < spec.crowd_rate:
        scene = crowd_scene(spec.seed, position, mix.styles, mix.nouns)
    else:
        scene = sample_scene(spec.seed, position, split="all", mix=mix)
    if rng.random() < spec.subject_rate:
        scene = _with_subject(scene, rng)
    smallest = min(placed.box[2] - placed.box[0] for placed in scene.objects)
    draw, name = rng.random(), rng.choice(FILTERS)
    if draw < spec.spoiled_rate:
        return scene, None, True
    filtered = draw < spec.spoiled_rate + spec.filter_rate and smallest >= LEAST_FILTERED_PX
    return scene, name if filtered and min(scene.original_size) >= CANVAS_SIZE else None, False


def seen_box(
    box: Box, extent: tuple[float, float], crop_top_left: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the part of an object's tight box that the picture shows, in px.

    Args:
        box: The sprite's square on the canvas.
        extent: Width and height of the drawing as shares of the sprite, in whose middle it is.
        crop_top_left: Where the picture begins on the canvas.
    """
    top, left = crop_top_left
    side = box[2] - box[0]
    x, y = (box[0] + box[2]) / 2 - left, (box[1] + box[3]) / 2 - top
    half = extent[0] * side / 2, extent[1] * side / 2
    edges = (x - half[0], y - half[1], x + half[0], y + half[1])
    x0, y0, x1, y1 = (min(max(edge, 0.0), float(CANVAS_SIZE)) for edge in edges)
    return x0, y0, x1, y1


def sprite_extents(atlas: SpriteAtlas) -> list[tuple[float, float]]:
    """Return width and height of every sprite's drawing as shares of its side; drawings are centred."""
    solid = atlas.sprites[:, 3] > 8
    side = solid.shape[-1]
    shares = []
    for dimension in (1, 2):  # columns that hold something, then rows
        hit = solid.any(dimension).float()
        ticks = torch.arange(side, device=hit.device)
        first = torch.where(hit > 0, ticks, side).amin(1)
        last = torch.where(hit > 0, ticks, -1).amax(1)
        shares.append(((last - first + 1).clamp_min(1) / side).tolist())
    return list(zip(*shares, strict=True))


def same_look(atlas: SpriteAtlas, styles: Sequence[str]) -> frozenset[int]:
    """Return rows of some styles whose own colours look like an object colour (a red apple): "natural" is no answer."""
    facts = load_sprite_facts()
    found = set()
    for (style, slug), row in atlas.index.items():
        colours = facts.colours(style, slug) if style in styles else ()
        if colours:
            sprite = atlas.pyramid[LEVEL_PX][row].float() / 255
            pure = torch.tensor([pure_hue(colour) for colour in HUES if colour in colours], device=sprite.device)
            moved = (recolour(sprite.expand(len(pure), -1, -1, -1), pure) - sprite)[:, :3].abs().amax(1)
            mean = moved.sum((1, 2)) / sprite[3].sum().clamp_min(1e-6)
            if float(mean.min()) < SAME_LOOK:
                found.add(row)
    return frozenset(found)


def _with_subject(scene: Scene, rng: random.Random) -> Scene:
    """Put a subject in place of one object, where one stands out from the background."""
    fitting = [subject for subject in load_subjects().values() if scene.background in subject.backgrounds]
    if not fitting:
        return scene
    number = rng.randrange(len(scene.objects))
    placed: list[PlacedObject] = list(scene.objects)
    placed[number] = place_subject(rng.choice(fitting), placed[number])
    return replace(scene, objects=tuple(placed))


def _rng(seed: int, position: int, purpose: str) -> random.Random:
    return random.Random(derive_seed(seed, position, purpose))
