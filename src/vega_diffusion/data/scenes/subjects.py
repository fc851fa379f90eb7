"""Subjects: drawings that generators learn only when they are adapted to them, and that the checker can tell by name.

The sprites and `subjects.json` beside them are made by `scripts/make_subjects.py`. No training stream of a generator
draws them: only an atlas that `with_subjects` made holds them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.scene import HELD_OUT_STYLE, PlacedObject
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import InvalidValue

CAT = "black-and-white cat"
"""How the held-out style draws its cat; every other style's is orange, yellow or black line art."""


@dataclass(frozen=True)
class Subject:
    """One drawing.

    Args:
        name: What the checker calls it.
        file: Its sprite, 128 px.
        noun: The noun of the vocabulary that it also is, or None.
        source: Package and author.
        licence: What it may be used under.
        backgrounds: From which it stands out.
    """

    name: str
    file: str
    noun: str | None
    source: str
    licence: str
    backgrounds: tuple[str, ...]

    @property
    def slug(self) -> str:
        """Its key in an atlas; no icon is called so."""
        return f"subject/{self.name}"


def folder() -> Path:
    """Return the folder of the sprites."""
    return Path(str(files("vega_diffusion.data.scenes") / "subjects"))


@cache
def load_subjects() -> dict[str, Subject]:
    """Read the table (once): name -> subject, the cat first."""
    table = json.loads((folder() / "subjects.json").read_text(encoding="utf-8"))
    return {
        name: Subject(name=name, **{**row, "backgrounds": tuple(row["backgrounds"])}) for name, row in table.items()
    }


def find_subject(name: str) -> Subject:
    """Return the subject of that name.

    Raises:
        InvalidValue: There is none.
    """
    if name not in load_subjects():
        raise InvalidValue("subject", name, f"one of: {', '.join(load_subjects())}", "choose one of them")
    return load_subjects()[name]


def with_subjects(atlas: SpriteAtlas, styles: Sequence[str]) -> SpriteAtlas:
    """Return an atlas that also holds the subjects; in every style they look the same.

    Args:
        atlas: Sprites of the vocabulary.
        styles: Styles in whose scenes subjects are to stand.
    """
    sprites = []
    index = dict(atlas.index)
    for number, subject in enumerate(load_subjects().values()):
        with Image.open(folder() / subject.file) as picture:
            sprites.append(np.asarray(picture.convert("RGBa")))
        index |= {(style, subject.slug): len(atlas.sprites) + number for style in styles}
    own = torch.from_numpy(np.stack(sprites)).permute(0, 3, 1, 2)
    return SpriteAtlas(index, torch.cat([atlas.sprites, own.to(atlas.sprites.device)]).contiguous())


def place_subject(subject: Subject, placed: PlacedObject) -> PlacedObject:
    """Put a subject where another object stands."""
    return PlacedObject(subject.noun or subject.name, placed.box, None, placed.flipped, subject.slug)


def shown_name(placed: PlacedObject, style: str) -> str:
    """Return what an object is called when all can be told apart: the subject's name where it is one, else the noun."""
    if placed.variant and placed.variant.startswith("subject/"):
        return placed.variant.removeprefix("subject/")
    cat = load_subjects()[CAT]
    drawn = placed.variant or load_vocabulary().noun(placed.noun).slug
    own = style == HELD_OUT_STYLE and placed.noun == cat.noun and drawn == "cat" and placed.colour is None
    return cat.name if own else placed.noun
