"""Scenes that satisfy a prompt, drawn by the scene renderer: what the ruler reads on pictures that are surely right.

Their score is the ceiling of every model's score. `vega_diffusion.data.scenes` draws; this module only chooses.
"""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

from vega_diffusion.data.scenes.layout import place_count, place_one, place_two
from vega_diffusion.data.scenes.scene import BACKGROUNDS, STYLES, Box, PlacedObject, Scene
from vega_diffusion.data.scenes.sprite_facts import load_sprite_facts
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.diffusion.randomness import derive_seed
from vega_diffusion.specs.evaluation import SuitePrompt

if TYPE_CHECKING:
    from vega_diffusion.data.scenes.atlas import SpriteAtlas


@cache
def sample_atlas() -> SpriteAtlas:
    """Return the package's own sample of drawings (read once): it holds every noun, and is the same everywhere."""
    from vega_diffusion.data.scenes.atlas import SpriteAtlas

    return SpriteAtlas.load(styles=STYLES)


def drawable_styles(prompt: SuitePrompt) -> tuple[str, ...]:
    """Return the training styles that can draw what a prompt asks for, so that every object stands out."""
    wanted = (prompt.style,) if prompt.style else STYLES
    return tuple(style for style in wanted if _backgrounds(prompt, style))


def scene_for(prompt: SuitePrompt, seed: int) -> Scene:
    """Return a scene that shows what a prompt asks for; a pure function of both.

    Args:
        prompt: What to show; the first noun of an object is drawn.
        seed: One of the prompt's. Its place among them chooses the style, by turns.

    Raises:
        ValueError: No training style can draw it.
    """
    styles = drawable_styles(prompt)
    if not styles:
        raise ValueError(f"no training style draws prompt {prompt.id!r}")
    rng = random.Random(derive_seed(seed, "render", prompt.id))
    style = styles[seed % len(styles)]
    background = rng.choice(_backgrounds(prompt, style))
    boxes = _boxes(prompt, rng)
    wanted = [expected for expected in prompt.objects for _ in range(expected.count or 1)]
    vocabulary = load_vocabulary()
    objects = []
    for expected, box in zip(wanted, boxes, strict=True):
        noun = vocabulary.noun(expected.nouns[0])
        flipped = not noun.lettering and rng.random() < 0.25
        objects.append(PlacedObject(noun.name, box, expected.colour, flipped))
    return Scene(tuple(objects), background, style, relation=prompt.relation, count=len(objects))


def _boxes(prompt: SuitePrompt, rng: random.Random) -> list[Box]:
    if len(prompt.objects) == 2:
        return place_two(prompt.relation, rng)
    count = prompt.objects[0].count or 1
    return [place_one(None, rng)] if count == 1 else place_count(count, rng)


def _backgrounds(prompt: SuitePrompt, style: str) -> list[str]:
    """Return the backgrounds on which a style can show every object of a prompt: the one asked for, or plain ones."""
    names = [prompt.background] if prompt.background else list(BACKGROUNDS)
    for expected in prompt.objects:
        seen = _seen(style, expected.nouns[0], expected.colour)
        # A lighter purple thing on purple can be made out, but nobody would put it there.
        names = [name for name in names if name in seen and name != expected.colour]
    return names


@cache
def _seen(style: str, name: str, colour: str | None) -> frozenset[str]:
    noun = load_vocabulary().noun(name)
    return load_sprite_facts().backgrounds(style, noun.slug, colour) if style in noun.styles else frozenset()
