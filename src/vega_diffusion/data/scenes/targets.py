"""What a caption says, as class indices: what text encoders learn to predict before any picture is drawn.

Every slot is one classification. Where the caption does not say (and the scene could be either way), the target is
`IGNORE`. Where silence itself says it (no second object, natural colours), there is a class for it: index 0.
"""

from __future__ import annotations

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
def _indices() -> dict[str, dict[str, int]]:
    return {slot: {name: index for index, name in enumerate(names)} for slot, names in target_classes().items()}


def slot_sizes() -> dict[str, int]:
    """Return slot -> number of its classes."""
    return {slot: len(names) for slot, names in target_classes().items()}


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
