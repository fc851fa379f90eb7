"""Every kind of prompt passes and fails for the right reason, on findings made by hand."""

from __future__ import annotations

from typing import get_args

import pytest

from tiny_evaluation import prompt
from vega_diffusion.evaluation.judgement import judge, stands
from vega_diffusion.models.detections import Detection, Finding
from vega_diffusion.specs.evaluation import ExpectedObject, SuiteKind


def seen(noun: str, x: float = 64, y: float = 64, colour: str = "natural", score: float = 0.9) -> Detection:
    return Detection(noun, 0.9, colour, (x - 20, y - 20, x + 20, y + 20), score)


def finding(*detections: Detection, background: str = "white", style: str = "noto") -> Finding:
    return Finding(detections, background, style)


CAT, DOG = ExpectedObject(nouns=("cat",)), ExpectedObject(nouns=("dog",))
RED_CAT, BLUE_DOG = ExpectedObject(nouns=("cat",), colour="red"), ExpectedObject(nouns=("dog",), colour="blue")
LEFT = {"objects": (CAT, DOG), "relation": "left of"}
BOTH = {"objects": (RED_CAT, BLUE_DOG)}

# (kind, what is asked, what is found, the reasons)
CASES: list[tuple[str, dict, Finding, tuple[str, ...]]] = [
    ("single_object", {}, finding(seen("cat")), ()),
    ("single_object", {}, finding(seen("dog"), seen("cat", 20)), ()),
    ("single_object", {}, finding(seen("dog")), ("no cat (found dog)",)),
    ("single_object", {}, finding(), ("no cat (nothing found)",)),
    ("single_object", {"objects": (ExpectedObject(nouns=("mouse", "rat")),)}, finding(seen("rat")), ()),
    ("two_objects", {"objects": (CAT, DOG)}, finding(seen("dog"), seen("cat")), ()),
    ("two_objects", {"objects": (CAT, DOG)}, finding(seen("cat"), seen("cat", 20)), ("no dog (found cat)",)),
    (
        "two_objects",
        {"objects": (CAT, DOG)},
        finding(seen("cow")),
        ("no cat (found cow)", "no dog (found cow)"),
    ),
    ("counting", {"objects": (ExpectedObject(nouns=("cat",), count=2),)}, finding(seen("cat"), seen("cat", 20)), ()),
    (
        "counting",
        {"objects": (ExpectedObject(nouns=("cat",), count=2),)},
        finding(seen("cat"), seen("cat", 20), seen("cat", 90)),
        ("3 of cat, not 2",),
    ),
    (
        "counting",
        {"objects": (ExpectedObject(nouns=("cat",), count=2),)},
        finding(seen("cat"), seen("dog", 20)),
        ("1 of cat, not 2",),
    ),
    ("colours", {"objects": (RED_CAT,)}, finding(seen("cat", colour="red")), ()),
    ("colours", {"objects": (RED_CAT,)}, finding(seen("cat", colour="blue")), ("cat is blue, not red",)),
    ("colours", {"objects": (RED_CAT,)}, finding(seen("cat")), ("cat is natural, not red",)),
    ("colours", {"objects": (RED_CAT,)}, finding(seen("dog", colour="red")), ("no cat (found dog)",)),
    ("position", LEFT, finding(seen("cat", 30), seen("dog", 90)), ()),
    ("position", LEFT, finding(seen("cat", 90), seen("dog", 30)), ("cat is not left of dog",)),
    ("position", LEFT, finding(seen("cat", 30)), ("no dog (found cat)",)),
    ("attribute_binding", BOTH, finding(seen("cat", colour="red"), seen("dog", colour="blue")), ()),
    (
        "attribute_binding",
        BOTH,
        finding(seen("cat", colour="blue"), seen("dog", colour="red")),
        ("cat is blue, not red", "dog is red, not blue"),
    ),
    ("background", {"background": "teal"}, finding(background="teal"), ()),
    ("background", {"background": "teal"}, finding(seen("cat")), ("background is white, not teal",)),
    ("place", {"background": "beach"}, finding(background="beach"), ()),
    ("place", {"background": "beach"}, finding(background="sea"), ("background is sea, not beach",)),
    ("style", {"style": "noto"}, finding(), ()),
    ("style", {"style": "twemoji"}, finding(), ("style is noto, not twemoji",)),
    ("natural", {"objects": (CAT, BLUE_DOG)}, finding(seen("cat"), seen("dog", colour="red")), ()),
    ("natural", {"objects": (CAT, DOG)}, finding(seen("cat")), ("no dog (found cat)",)),
]


@pytest.mark.parametrize(("kind", "asked", "found", "reasons"), CASES)
def test_a_picture_passes_or_fails_for_the_right_reason(
    kind: str, asked: dict, found: Finding, reasons: tuple[str, ...]
) -> None:
    verdict = judge(prompt(f"{kind}-000", **asked), found)
    assert verdict.reasons == reasons
    assert verdict.passed == (not reasons)


def test_every_kind_passes_and_fails_above() -> None:
    outcomes = {(kind, not reasons) for kind, _, _, reasons in CASES}
    assert outcomes == {(kind, passed) for kind in get_args(SuiteKind) for passed in (True, False)}


def test_the_surest_detection_of_a_noun_decides_its_colour_and_place() -> None:
    two_cats = finding(seen("cat", 100, colour="blue", score=0.5), seen("cat", 20, colour="red", score=0.9))
    assert judge(prompt("colours-000", objects=(RED_CAT,)), two_cats).passed
    with_dog = Finding((*two_cats.detections, seen("dog", 64)), "white", "noto")
    assert judge(prompt("position-000", **LEFT), with_dog).passed


@pytest.mark.parametrize(
    ("dx", "dy", "holds"),
    [
        (-40, 0, {"left of", "next to"}),
        (40, 0, {"right of", "next to"}),
        (0, -40, {"above"}),
        (0, 40, {"below"}),
        (-40, -40, {"left of", "next to", "above"}),  # both are true of a diagonal
        (-40, -15, {"left of", "next to"}),
        (-8, 0, set()),  # within a tenth of both sizes together
        (-15, 0, set()),  # the margin takes more than half of it
        (-17, 0, {"left of", "next to"}),
        (0, 0, set()),
    ],
)
def test_positions_go_by_centres_with_a_margin(dx: float, dy: float, holds: set[str]) -> None:
    first, second = seen("cat", 64 + dx, 64 + dy), seen("dog")
    relations = ("left of", "right of", "above", "below", "next to")
    assert {relation for relation in relations if stands(first, second, relation)} == holds
