"""Which combinations of things are kept out of training: one function for every data source, recipe and test.

A combination is an unordered pair of (noun, noun), (noun, object colour) or (noun, place). A stable hash keeps one in
ten out. A scene that shows any held-out combination is never in split "train", whether or not its caption says so.
The held-out ones are halved again, so that tuning ("dev") and the final test ("test") never share a combination.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import combinations
from typing import Literal, get_args

from vega_diffusion.data.scenes.scene import HUES, PLACES, Scene
from vega_diffusion.errors import InvalidValue

Split = Literal["train", "held-out", "dev", "test", "all"]
Pairing = Literal["noun-noun", "noun-colour", "noun-place"]
Combination = tuple[Pairing, str, str]

HELD_OUT_ONE_IN = 10
_SALT = "vega scenes, split 1"


def check_split(split: str) -> Split:
    """Return the name of a split, checked.

    Raises:
        InvalidValue: It is none of the splits.
    """
    if split not in get_args(Split):
        raise InvalidValue("split", split, f"one of: {', '.join(get_args(Split))}", "choose one of them")
    return split  # type: ignore[return-value]


@cache
def held_out_part(pairing: Pairing, first: str, second: str) -> Literal["dev", "test"] | None:
    """Return which held-out part a combination belongs to, or None where training may show it.

    The order of two nouns does not matter: `first` and `second` are sorted for "noun-noun".
    """
    if pairing == "noun-noun" and second < first:
        return held_out_part(pairing, second, first)
    digest = hashlib.blake2b(f"{_SALT}|{pairing}|{first}|{second}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little")
    if value % HELD_OUT_ONE_IN:
        return None
    return "dev" if value // HELD_OUT_ONE_IN % 2 else "test"


def scene_combinations(scene: Scene) -> set[Combination]:
    """Return every combination that a scene shows."""
    nouns = sorted({placed.noun for placed in scene.objects})
    found: set[Combination] = {("noun-noun", first, second) for first, second in combinations(nouns, 2)}
    found |= {("noun-colour", placed.noun, placed.colour) for placed in scene.objects if placed.colour}
    if scene.background in PLACES:
        found |= {("noun-place", noun, scene.background) for noun in nouns}
    return found


def held_out_combinations(scene: Scene) -> set[Combination]:
    """Return those combinations of a scene that training must not show."""
    return {found for found in scene_combinations(scene) if held_out_part(*found)}


def in_split(scene: Scene, split: Split) -> bool:
    """Say whether a scene belongs to a split.

    "train": no held-out combination; "held-out": at least one; "dev" / "test": at least one, and all of them from
    that half; "all": any scene.
    """
    if split == "all":
        return True
    parts = {held_out_part(*found) for found in scene_combinations(scene)} - {None}
    match split:
        case "train":
            return not parts
        case "held-out":
            return bool(parts)
        case "dev" | "test":
            return parts == {split}


def held_out_list(nouns: tuple[str, ...]) -> list[Combination]:
    """Return all held-out combinations over some nouns, sorted: for reports and for building test prompts."""
    every: list[Combination] = [("noun-noun", first, second) for first, second in combinations(sorted(nouns), 2)]
    every.extend(("noun-colour", noun, colour) for noun in sorted(nouns) for colour in HUES)
    every.extend(("noun-place", noun, place) for noun in sorted(nouns) for place in PLACES)
    return [found for found in every if held_out_part(*found)]
