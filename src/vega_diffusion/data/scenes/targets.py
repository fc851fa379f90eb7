"""What a caption says, as class indices: what text encoders learn to predict before any picture is drawn.

Every slot is one classification. Where the caption does not say (and the scene could be either way), the target is
`IGNORE`. Where silence itself says it (no second object, natural colours), there is a class for it: index 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from vega_diffusion.data.scenes.captions import shown_gender
from vega_diffusion.data.scenes.scene import (
    BACKGROUNDS,
    HELD_OUT_STYLE,
    HUES,
    PLACES,
    RELATIONS,
    SIZE_WORDS,
    STYLES,
    Scene,
)
from vega_diffusion.data.scenes.vocabulary import load_vocabulary

IGNORE = -100
"""Torch's own ignore index of cross entropy."""

_NOTHING = "nothing"
_NAMED_FIRST = "named first"
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "next to": "next to"}
MOST_MENTIONS = 2
"""A caption names at most so many different things."""


@cache
def target_classes() -> dict[str, tuple[str, ...]]:
    """Return slot -> names of its classes, in the order of their indices."""
    nouns = load_vocabulary().names
    colours = ("natural", *HUES)
    return {
        "object1": nouns,
        "colour1": colours,
        "object2": (_NOTHING, *nouns),
        "colour2": colours,
        "relation": (_NOTHING, *RELATIONS),
        "count": ("1", "2", "3", "4"),
        "size": SIZE_WORDS,
        "background": (*BACKGROUNDS, *PLACES),
        "style": (*STYLES, HELD_OUT_STYLE),
        "gender": ("man", "woman"),
    }


@cache
def mention_classes() -> dict[str, tuple[str, ...]]:
    """Return what the words up to one object's name say of that object: slot -> names of its classes.

    `side` is where it is, seen from the thing named before it.
    """
    slots = target_classes()
    return {
        "noun": slots["object1"],
        "colour": slots["colour1"],
        "count": slots["count"],
        "side": (_NAMED_FIRST, _NOTHING, *RELATIONS),
    }


@cache
def _indices() -> dict[str, dict[str, int]]:
    classes = target_classes() | mention_classes()
    return {slot: {name: index for index, name in enumerate(names)} for slot, names in classes.items()}


def slot_sizes() -> dict[str, int]:
    """Return slot -> number of its classes."""
    return {slot: len(names) for slot, names in target_classes().items()}


def mention_sizes() -> dict[str, int]:
    """Return slot of one mentioned object -> number of its classes."""
    return {slot: len(names) for slot, names in mention_classes().items()}


def spec_targets(scene: Scene) -> dict[str, int]:
    """Return slot -> class index, `IGNORE` where no caption of this scene says it."""
    first = scene.objects[0]
    second = scene.objects[1] if len(scene.objects) > 1 and scene.count == 1 else None
    # Captions that name two things without a relation ("a cat and a dog") leave open how they stand.
    open_relation = second is not None and scene.relation is None
    said: dict[str, str | None] = {
        "object1": first.noun,
        "colour1": first.colour or "natural",
        "object2": second.noun if second else _NOTHING,
        "colour2": (second.colour or "natural") if second else None,
        "relation": None if open_relation else scene.relation or _NOTHING,
        "count": str(scene.count),
        "size": scene.size_word,
        "background": scene.background if scene.background_in_caption else None,
        "style": scene.style if scene.style_in_caption else None,
        "gender": shown_gender(first) if scene.gender_in_caption and scene.caption_kind != "count" else None,
    }
    indices = _indices()
    return {slot: IGNORE if value is None else indices[slot][value] for slot, value in said.items()}


def mention_targets(scene: Scene, ends: Sequence[int | None]) -> dict[str, list[int]]:
    """Return slot -> class index for each of `MOST_MENTIONS` objects, `IGNORE` where no place in the text is known.

    Args:
        scene: What the caption is about.
        ends: Where the objects' phrases end in it, from `captions.caption_with_mentions`.
    """
    indices, found = _indices(), {slot: [IGNORE] * MOST_MENTIONS for slot in mention_classes()}
    for number, end in enumerate(ends):
        if end is None:
            continue
        placed = scene.objects[number]
        said = {
            "noun": placed.noun,
            "colour": placed.colour or "natural",
            "count": str(scene.count),
            "side": _side(scene, ends, number),
        }
        for slot, value in said.items():
            found[slot][number] = IGNORE if value is None else indices[slot][value]
    return found


def _side(scene: Scene, ends: Sequence[int | None], number: int) -> str | None:
    """Say where an object is, seen from the one named before it; None where the other's place in the text is open."""
    if len(ends) == 1:
        return _NAMED_FIRST
    own, other = ends[number], ends[1 - number]
    if own is None or other is None:
        return None
    if own < other:
        return _NAMED_FIRST
    if scene.relation is None:
        return _NOTHING
    return scene.relation if number == 0 else _OPPOSITE[scene.relation]
