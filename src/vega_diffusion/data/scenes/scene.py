"""What a scene is: the frozen types `Scene` and `PlacedObject`, and the names they may hold.

A scene holds names and boxes only, no pixels and no words: the renderer draws it, `captions.py` describes it,
`grammar.py` draws it at random, `vocabulary.py` knows the nouns. The canvas is the picture before the crop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CANVAS_SIZE = 128
"""Side of the target picture in px; the shorter side of every canvas has the same length."""

MAX_CROP = 32
"""Largest crop offset in px: the longer side of a canvas is at most `CANVAS_SIZE + MAX_CROP`."""

Rgb = tuple[int, int, int]
Box = tuple[int, int, int, int]

BACKGROUNDS: dict[str, Rgb] = {
    "white": (252, 252, 252),
    "black": (22, 22, 26),
    "gray": (150, 152, 156),
    "red": (212, 44, 48),
    "orange": (246, 138, 34),
    "yellow": (252, 222, 84),
    "green": (58, 160, 72),
    "teal": (54, 196, 196),
    "blue": (44, 98, 216),
    "purple": (140, 56, 168),
    "pink": (250, 164, 200),
    "brown": (122, 78, 48),
}
"""Plain backgrounds, pairwise at least 30 apart in CIE Lab."""

PLACES: tuple[str, ...] = ("grass", "beach", "snow", "night", "sea")
"""Drawn backgrounds: a meadow, a sandy beach, snow, a starry night sky, the open sea."""

DARK_PLACES: frozenset[str] = frozenset({"night", "sea"})

LIGHT_BACKGROUNDS: frozenset[str] = frozenset(
    {"white", "gray", "orange", "yellow", "teal", "pink", "grass", "beach", "snow"}
)
"""Where black line art is easy to see."""

HUES: dict[str, float] = {
    "red": 0.0,
    "orange": 28.0,
    "yellow": 52.0,
    "green": 125.0,
    "blue": 218.0,
    "purple": 276.0,
    "pink": 328.0,
}
"""Object colours: name -> HSV hue in degrees that the renderer puts in place of a sprite's own."""

HUE_RGB: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "orange": (240, 135, 35),
    "yellow": (245, 210, 50),
    "green": (50, 165, 70),
    "blue": (45, 110, 225),
    "purple": (135, 65, 190),
    "pink": (245, 100, 175),
}
"""A typical mean colour of a sprite recoloured to each hue, for contrast tests before the atlas is known."""

STYLES: tuple[str, ...] = ("fluent3d", "fluentflat", "fluentline", "noto", "notov1", "twemoji")
"""Drawing styles used for training."""

HELD_OUT_STYLE = "emojione"
"""The style no training of the mini family ever sees."""

LINE_STYLE = "fluentline"
"""Black line art: cannot be recoloured and needs one of `LIGHT_BACKGROUNDS`."""

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below", "next to")
"""Where object 1 is, seen from object 2."""

SIZE_WORDS: tuple[str, ...] = ("small", "large")

CAPTION_KINDS: tuple[str, ...] = (
    "single",
    "two",
    "relation",
    "count",
    "size",
    "colour",
    "binding",
    "background",
    "place",
)
"""What a scene is about, and what its caption therefore always says."""


@dataclass(frozen=True)
class PlacedObject:
    """One sprite on the canvas.

    Args:
        noun: A noun of the vocabulary.
        box: Square x0, y0, x1, y1 in canvas px (before the crop); the sprite fills it.
        colour: One of `HUES`, or None for the sprite's own colours.
        flipped: Mirrored left to right (never where the noun carries lettering).
        variant: Icon slug of one of the noun's alternative drawings (persons), or None for the noun's own slug.
    """

    noun: str
    box: Box
    colour: str | None = None
    flipped: bool = False
    variant: str | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """Centre x, y in canvas px."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """Everything that decides the pixels of one picture, and what its caption is about.

    Args:
        objects: In painter's order: the first is painted first. Object 1 of the caption is `objects[0]`.
        background: One of `BACKGROUNDS` or `PLACES`.
        style: One of `STYLES` (or `HELD_OUT_STYLE`); all sprites of a scene share it.
        original_size: (height, width) in px at which the picture is drawn before it is resized to `canvas_size`;
            below the canvas it comes out blurred, at or above it sharp.
        crop_top_left: (top, left) in px of the 128 px window that is cut out of the canvas.
        caption_kind: One of `CAPTION_KINDS`.
        relation: One of `RELATIONS` (only with two objects of different nouns), or None.
        size_word: One of `SIZE_WORDS`, or None.
        count: How many copies of object 1's noun there are, 1..4.
        style_in_caption: The caption names the style.
        background_in_caption: The caption names the background or place.
        gender_in_caption: The caption says man or woman of a person whose drawing shows one.
    """

    objects: tuple[PlacedObject, ...]
    background: str
    style: str
    original_size: tuple[int, int] = (CANVAS_SIZE, CANVAS_SIZE)
    crop_top_left: tuple[int, int] = (0, 0)
    caption_kind: str = "single"
    relation: str | None = None
    size_word: str | None = None
    count: int = 1
    style_in_caption: bool = False
    background_in_caption: bool = False
    gender_in_caption: bool = False

    @property
    def canvas_size(self) -> tuple[int, int]:
        """(height, width) in px of the canvas: `original_size` scaled so that its shorter side is `CANVAS_SIZE`.

        As in SDXL's own training: the picture is resized until it just covers the square target, then cropped.
        """
        height, width = self.original_size
        shorter = min(height, width)
        return round(height * CANVAS_SIZE / shorter), round(width * CANVAS_SIZE / shorter)

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's micro-conditioning: original height and width, crop top and left, target height and width, in px."""
        return (*self.original_size, *self.crop_top_left, CANVAS_SIZE, CANVAS_SIZE)

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as plain JSON data; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """Build a scene from what `to_dict` (or JSON made from it) holds."""
        values = dict(data)
        values["objects"] = tuple(PlacedObject(**{**item, "box": tuple(item["box"])}) for item in values["objects"])
        for name in ("original_size", "crop_top_left"):
            values[name] = tuple(values[name])
        return cls(**values)
