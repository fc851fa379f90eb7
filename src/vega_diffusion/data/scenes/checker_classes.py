"""Everything that the checker can tell apart, by name: the one place where its lists of classes come from."""

from __future__ import annotations

from functools import cache

from vega_diffusion.data.scenes.filters import FILTERS
from vega_diffusion.data.scenes.scene import BACKGROUNDS, HELD_OUT_STYLE, HUES, PLACES, STYLES
from vega_diffusion.data.scenes.subjects import load_subjects
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.specs.checker import CheckerSpec

NATURAL = "natural"
OTHER = "something else"
"""What the checker calls an object that has a place and a colour but is no drawing of any noun: a blot."""

DRAWN_STYLES: tuple[str, ...] = (*STYLES, HELD_OUT_STYLE)


@cache
def checker_spec() -> CheckerSpec:
    """Return the checker of this vocabulary, with the default widths."""
    return CheckerSpec(
        nouns=(*load_vocabulary().names, *load_subjects(), OTHER),
        colours=(NATURAL, *HUES),
        styles=(*DRAWN_STYLES, *FILTERS),
        backgrounds=(*BACKGROUNDS, *PLACES),
    )


@cache
def class_indices() -> dict[str, dict[str, int]]:
    """Return list -> name -> index, for the lists nouns, colours, styles and backgrounds."""
    spec = checker_spec()
    lists = {"nouns": spec.nouns, "colours": spec.colours, "styles": spec.styles, "backgrounds": spec.backgrounds}
    return {name: {value: index for index, value in enumerate(values)} for name, values in lists.items()}
