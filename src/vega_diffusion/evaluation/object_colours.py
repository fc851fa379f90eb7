"""Which colours a prompt may ask of a noun: those that its drawings can take and do not have anyway.

A drawing of an apple is red without being asked, so "a red apple" tells nothing and has two right readings: natural and
red. Such pairs are left out, by measuring the hue of the drawings in the package's sample.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from vega_diffusion.data.scenes.atlas import coloured_hues
from vega_diffusion.data.scenes.scene import HUES, LINE_STYLE, STYLES
from vega_diffusion.data.scenes.sprite_facts import load_sprite_facts
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.evaluation.renders import sample_atlas

MIN_STYLES = 3
"""Styles that must be able to draw a noun in a colour."""

LEVEL_PX = 32
MIN_COLOURED = 0.1
"""Share of coloured pixels below which a drawing has no colour of its own."""
_BIN_DEGREES = 10


@cache
def askable_colours(noun: str) -> tuple[str, ...]:
    """Return the object colours that prompts may ask of a noun, in the order of `HUES`."""
    slug, facts = load_vocabulary().noun(noun).slug, load_sprite_facts()
    can = [colour for colour in HUES if sum(colour in facts.colours(style, slug) for style in STYLES) >= MIN_STYLES]
    return tuple(colour for colour in can if colour not in natural_colours().get(noun, frozenset()))


@cache
def natural_colours() -> dict[str, frozenset[str]]:
    """Return, by noun, the object colours that are nearest to the main hue of one of its drawings."""
    atlas = sample_atlas()
    pixels = atlas.pyramid[LEVEL_PX].numpy()
    found: dict[str, frozenset[str]] = {}
    for noun in load_vocabulary().nouns.values():
        rows = [
            atlas.index[style, noun.slug]
            for style in STYLES
            if style != LINE_STYLE and (style, noun.slug) in atlas.index
        ]
        hues = [hue for row in rows if (hue := main_hue(pixels[row])) is not None]
        found[noun.name] = frozenset(colour for hue in hues for colour in near_colours(hue))
    return found


def near_colours(hue: float) -> tuple[str, ...]:
    """Return the object colours that a hue in degrees could be called: the nearest, and the next if nearly as near."""
    distances = {colour: min(abs(hue - centre), 360 - abs(hue - centre)) for colour, centre in HUES.items()}
    least = min(distances.values())
    return tuple(colour for colour, distance in distances.items() if distance <= least + _BIN_DEGREES)


def main_hue(sprite: np.ndarray) -> float | None:
    """Return the commonest hue in degrees of a sprite's coloured pixels, or None where it has hardly any.

    Args:
        sprite: uint8 [4, H, W], RGB premultiplied by alpha.
    """
    share, hues = coloured_hues(sprite)
    if share < MIN_COLOURED:
        return None
    counts = np.histogram(hues, bins=360 // _BIN_DEGREES, range=(0, 360))[0]
    near = counts + np.roll(counts, 1) + np.roll(counts, -1)
    peak = int(near.argmax())
    return (peak + 0.5) * _BIN_DEGREES
