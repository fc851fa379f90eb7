"""Does a picture show its prompt? A pure function of what was asked and what the checker found.

The rules follow GenEval (Ghosh et al. 2023, arXiv 2310.11513, section 3 and its `evaluate_images.py`): an object is
there when something of its name is found; a count is exact; colour and place are those of the surest detection of
each object; a place holds when the centres differ by more than a tenth of both objects' sizes, in that direction.
Other than there, one checker finds objects and colours alike, with one threshold for all kinds, and "next to" is ours.
The rows `background`, `place` and `style` judge only what they are named after: whether the object itself is there is
what `single_object` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from vega_diffusion.models.detections import Detection, Finding
from vega_diffusion.specs.evaluation import ExpectedObject, SuitePrompt

POSITION_MARGIN = 0.1
"""Of the sum of both sizes: a smaller difference of the centres counts as none."""
POSITION_SHARE = 0.5
"""Of the distance of the centres: what must lie in the direction asked for, after the margin is taken off."""


@dataclass(frozen=True)
class Judgement:
    """Whether a picture shows its prompt; if not, every reason as a phrase, in the order of what was asked."""

    passed: bool
    reasons: tuple[str, ...]


def judge(prompt: SuitePrompt, finding: Finding) -> Judgement:
    """Hold what was found against what was asked.

    Args:
        prompt: What the picture must show.
        finding: What the checker saw; everything in it counts as found (the checker has its own threshold).
    """
    match prompt.kind:
        case "single_object" | "two_objects" | "counting" | "colours" | "attribute_binding":
            reasons = _objects(prompt.objects, finding)
        case "position":
            reasons = _objects(prompt.objects, finding) or _relation(prompt, finding)
        case "background" | "place":
            reasons = _same("background", prompt.background, finding.background)
        case "style":
            reasons = _same("style", prompt.style, finding.style)
        case "natural":
            named = [expected.model_copy(update={"colour": None, "count": None}) for expected in prompt.objects]
            reasons = _objects(named, finding)
        case _:
            assert_never(prompt.kind)
    return Judgement(not reasons, tuple(reasons))


def found_objects(expected: ExpectedObject, finding: Finding) -> list[Detection]:
    """Return the detections that bear a name of an expected object, the surest first."""
    named = [detection for detection in finding.detections if detection.noun in expected.nouns]
    return sorted(named, key=lambda detection: -detection.score)


def stands(first: Detection, second: Detection, relation: str) -> bool:
    """Say whether one object stands in a relation to another ("next to" is left or right of).

    Source: GenEval's `relative_position`.
    """
    width = _side(first, 0) + _side(second, 0)
    height = _side(first, 1) + _side(second, 1)
    dx, dy = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    distance = math.hypot(dx, dy)
    if distance == 0:
        return False
    right = _beyond(dx, POSITION_MARGIN * width) / distance
    down = _beyond(dy, POSITION_MARGIN * height) / distance
    match relation:
        case "left of":
            return right < -POSITION_SHARE
        case "right of":
            return right > POSITION_SHARE
        case "above":
            return down < -POSITION_SHARE
        case "below":
            return down > POSITION_SHARE
        case "next to":
            return abs(right) > POSITION_SHARE
        case _:
            raise ValueError(f"relation {relation!r} is none of scene.RELATIONS")


def _objects(objects: Sequence[ExpectedObject], finding: Finding) -> list[str]:
    """Return what is wrong with the objects: missing, too many or few, of another colour."""
    reasons = []
    for expected in objects:
        name = expected.nouns[0]
        found = found_objects(expected, finding)
        if expected.count is not None and len(found) != expected.count:
            reasons.append(f"{len(found)} of {name}, not {expected.count}")
        elif not found:
            reasons.append(f"no {name} ({_seen(finding)})")
        elif expected.colour is not None and found[0].colour != expected.colour:
            reasons.append(f"{name} is {found[0].colour}, not {expected.colour}")
    return reasons


def _relation(prompt: SuitePrompt, finding: Finding) -> list[str]:
    """Return what is wrong with where object 1 stands; both objects have been found."""
    assert prompt.relation is not None and len(prompt.objects) == 2, "a prompt of kind position"
    first, second = (found_objects(expected, finding)[0] for expected in prompt.objects)
    if stands(first, second, prompt.relation):
        return []
    return [f"{prompt.objects[0].nouns[0]} is not {prompt.relation} {prompt.objects[1].nouns[0]}"]


def _same(what: str, asked: str | None, found: str) -> list[str]:
    return [] if asked == found else [f"{what} is {found}, not {asked}"]


def _seen(finding: Finding) -> str:
    names = dict.fromkeys(detection.noun for detection in finding.detections)
    return f"found {', '.join(names)}" if names else "nothing found"


def _side(detection: Detection, axis: int) -> float:
    return detection.box[axis + 2] - detection.box[axis]


def _beyond(offset: float, margin: float) -> float:
    """Return an offset less its margin, towards zero."""
    return math.copysign(max(abs(offset) - margin, 0.0), offset)
