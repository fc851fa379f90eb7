"""`CheckerSpec`: the checker's architecture with the names of all that it can tell apart, as data."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.base import Spec

UnitFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
STRIDE_PX = 8
"""Side of a cell of the checker's grid in px."""


class CheckerSpec(Spec):
    """What `models.checker.SceneChecker` is built from; lists of names are in the order of the network's outputs.

    Args:
        nouns: Everything that an object can be: nouns, subjects, and a name for what is none of them.
        colours: Object colours, "natural" among them.
        styles: Drawing styles and filter styles.
        backgrounds: Plain backgrounds and places.
        image_px: Side of a picture.
        widths: Channels at strides 2, 4, 8, 16 and 32.
        neck_width: Channels of the grid at stride 8, where all strides meet.
        whole_width: Hidden units of the head for the whole picture.
        groups: Groups of every group norm.
        score_threshold: Least probability at which an object counts as found.
        least_distance: Peaks nearer to each other than this share of the smaller mean side are one object.
    """

    nouns: tuple[str, ...]
    colours: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: tuple[str, ...]
    image_px: PositiveInt = 128
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (16, 32, 64, 128, 128)
    neck_width: PositiveInt = 96
    whole_width: PositiveInt = 128
    groups: PositiveInt = 8
    score_threshold: UnitFraction = 0.35
    least_distance: PositiveFloat = 0.4

    @property
    def grid(self) -> int:
        """Cells along a side."""
        return self.image_px // STRIDE_PX

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.image_px % 32:
            raise InvalidValue("image_px", self.image_px, "a multiple of 32", "change it")
        for name in ("nouns", "colours", "styles", "backgrounds"):
            names = getattr(self, name)
            if not names or len(set(names)) != len(names):
                raise InvalidValue(name, names, "one or more different names", "mend the list")
        for width in (*self.widths, self.neck_width):
            if width % self.groups:
                raise InvalidValue("widths", width, f"multiples of groups {self.groups}", "change one")
        return self
