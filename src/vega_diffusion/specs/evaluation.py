"""What prompt-following is measured on, as data: one line of a suite is a prompt with all that its pictures must show.

What lives here: `SuitePrompt` and its parts. What does not: how pictures are drawn and judged (`evaluation/`), and the
prompts themselves (JSON lines in `evaluation/suites/`).
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import NonNegativeInt, PositiveInt

from vega_diffusion.specs.base import Spec

OverallKind = Literal["single_object", "two_objects", "counting", "colours", "position", "attribute_binding"]
RowKind = Literal["background", "place", "style", "natural"]
SuiteKind = Literal[OverallKind, RowKind]

OVERALL_KINDS: tuple[OverallKind, ...] = get_args(OverallKind)
"""GenEval's six kinds, whose mean is `overall`; the others are rows of their own."""

ROW_KINDS: tuple[RowKind, ...] = get_args(RowKind)


class ExpectedObject(Spec):
    """One thing that a picture must show.

    Args:
        nouns: Names that are right: the noun itself and those that are merged with it because drawings look alike.
        colour: One of the object colours, or None where any colour is right.
        count: Exactly how many, or None where at least one is right.
    """

    nouns: tuple[str, ...]
    colour: str | None = None
    count: PositiveInt | None = None


class SuitePrompt(Spec):
    """One prompt, the seeds of its pictures, and what every one of them must show.

    Args:
        id: Unique in its suite, as `two_objects-017`.
        kind: Which row it counts in.
        prompt: What the model is asked for.
        negative_prompt: What it is to stay away from, or None for the model's default.
        objects: What is asked for; the kinds background, place and style are not judged by it.
        relation: How object 1 stands to object 2 (`scene.RELATIONS`), or None.
        background: Plain background or place that must be behind it, or None.
        style: Drawing style that it must have, or None.
        unseen: Whether a combination in it is kept out of training (`scenes.splits`).
        seeds: One picture each; they follow one another.
    """

    id: str
    kind: SuiteKind
    prompt: str
    negative_prompt: str | None = None
    objects: tuple[ExpectedObject, ...] = ()
    relation: str | None = None
    background: str | None = None
    style: str | None = None
    unseen: bool = False
    seeds: tuple[NonNegativeInt, ...]
