"""Crowded scenes: two to nine objects anywhere, of one kind or of several, touching or overlapping a little.

No caption describes them: they are what a checker must be able to count and to keep apart, not what is drawn from text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from vega_diffusion.data.scenes.scene import CANVAS_SIZE, Box, PlacedObject, Scene
from vega_diffusion.data.scenes.sprite_facts import ALL_BACKGROUNDS, load_sprite_facts
from vega_diffusion.data.scenes.vocabulary import Noun, load_vocabulary

MOST = 9
LEAST_PX = 26
_COUNTS = {2: 3, 3: 4, 4: 5, 5: 4, 6: 3, 7: 1, 8: 1, MOST: 1}  # how often, for objects of one kind
_MIXED_COUNTS = {2: 4, 3: 4, 4: 3, 5: 2}
_SAME_RATE = 0.5
_COLOUR_RATE = 0.35
_OVERLAP_RATE = 0.4
_FLIP_RATE = 0.25
_TRIES = 5


def crowd_scene(seed: int, position: int, styles: Sequence[str], nouns: Sequence[str] | None = None) -> Scene:
    """Return the crowded scene at a position of an endless stream; a pure function.

    Args:
        seed: Names the stream.
        position: Place in it.
        styles: Drawing styles, equally often.
        nouns: Names of nouns to use; None takes the whole vocabulary.
    """
    digest = hashlib.blake2b(f"crowd|{seed}|{position}".encode(), digest_size=8).digest()
    rng = random.Random(int.from_bytes(digest, "little"))
    while True:
        scene = _draw(rng, styles, nouns)
        if scene is not None:
            return scene


def _draw(rng: random.Random, styles: Sequence[str], nouns: Sequence[str] | None) -> Scene | None:
    vocabulary, facts = load_vocabulary(), load_sprite_facts()
    style = rng.choice(styles)
    background = rng.choice(ALL_BACKGROUNDS)
    pool = [noun for noun in vocabulary.drawn_by(style) if nouns is None or noun.name in nouns]
    same = rng.random() < _SAME_RATE or len(pool) < max(_MIXED_COUNTS)
    counts = _COUNTS if same else _MIXED_COUNTS
    count = rng.choices(list(counts), list(counts.values()))[0]
    coloured = rng.random() < _COLOUR_RATE
    chosen: list[tuple[Noun, str, str | None]] = []
    for noun in [rng.choice(pool)] if same else rng.sample(pool, count):
        slug = rng.choice(noun.drawings(style))
        colours = [hue for hue in facts.colours(style, slug) if facts.contrast_ok(style, slug, hue, background)]
        colour = rng.choice(colours) if coloured and colours else None
        if not facts.contrast_ok(style, slug, colour, background):
            return None
        chosen.append((noun, slug, colour))
    boxes = _boxes(count, 0.72 if rng.random() < _OVERLAP_RATE else 1.0, same, rng)
    objects = []
    for (noun, slug, colour), box in zip(chosen * count if same else chosen, boxes, strict=True):
        flipped = not noun.lettering and rng.random() < _FLIP_RATE
        objects.append(PlacedObject(noun.name, box, colour, flipped, None if slug == noun.slug else slug))
    return Scene(tuple(objects), background, style, caption_kind="count" if same else "two", count=count if same else 1)


def _boxes(count: int, apart: float, same: bool, rng: random.Random) -> list[Box]:
    """Return squares of which any two centres are at least `apart` mean sides from each other, along x or along y."""
    largest = min(72.0, 106 / count**0.5)
    sides = [max(LEAST_PX, largest * rng.uniform(0.62, 1.0)) for _ in range(1 if same else count)]
    sides = sides * count if same else sides
    while True:
        for _ in range(_TRIES):
            corners = [(rng.uniform(1, CANVAS_SIZE - 1 - s), rng.uniform(1, CANVAS_SIZE - 1 - s), s) for s in sides]
            boxes = _first_free(corners, sides, apart, rng)
            if boxes is not None:
                return boxes
        sides = [max(LEAST_PX, side * 0.9) for side in sides]


def _first_free(
    corners: list[tuple[float, float, float]], sides: list[float], apart: float, rng: random.Random
) -> list[Box] | None:
    kept: list[tuple[float, float, float]] = []
    for (x, y, side), _ in zip(corners, sides, strict=True):
        for _ in range(20):
            if all(max(abs(x + side / 2 - u), abs(y + side / 2 - v)) >= apart * (side + s) / 2 for u, v, s in kept):
                kept.append((x + side / 2, y + side / 2, side))
                break
            x, y = rng.uniform(1, CANVAS_SIZE - 1 - side), rng.uniform(1, CANVAS_SIZE - 1 - side)
        else:
            return None
    return [
        (round(x - side / 2), round(y - side / 2), round(x - side / 2) + round(side), round(y - side / 2) + round(side))
        for x, y, side in kept
    ]
