"""Nouns whose drawings cannot be told apart at 128 px, and nouns that no test asks for: the table `confusable.json`.

Groups are tight: being alike is not enough, a person looking at the drawing must be unable to tell.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from vega_diffusion.data.scenes.subjects import load_subjects
from vega_diffusion.data.scenes.vocabulary import load_vocabulary

PERSON_REASON = "a profession: only clothes and tools tell it from other people"


@cache
def _table() -> dict:
    return json.loads((files("vega_diffusion.data.scenes") / "confusable.json").read_text(encoding="utf-8"))


def merged_nouns(noun: str) -> tuple[str, ...]:
    """Return the names that are right where a noun is asked for: itself first, then what looks the same.

    A subject can be one of them (the black-and-white cat is a cat); where a subject is asked for, only it is right.

    Raises:
        InvalidValue: There is no such noun or subject.
    """
    if noun in load_subjects():
        return (noun,)
    load_vocabulary().noun(noun)
    others = [name for group in _table()["groups"] if noun in group["nouns"] for name in group["nouns"]]
    return tuple(dict.fromkeys((noun, *others)))


@cache
def left_out_nouns() -> dict[str, str]:
    """Return noun -> why no test asks for it: those of the table and every profession."""
    persons = {name: PERSON_REASON for name, noun in load_vocabulary().nouns.items() if noun.person}
    return {**persons, **_table()["left_out"]}


def testable_nouns() -> tuple[str, ...]:
    """Return the nouns that tests may ask for, in the vocabulary's order."""
    return tuple(name for name in load_vocabulary().names if name not in left_out_nouns())
