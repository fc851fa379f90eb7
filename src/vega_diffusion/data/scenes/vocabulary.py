"""The nouns that scenes hold: how they are said, which icons draw them, which styles have those icons.

The table itself is `vocabulary.json` beside this module, read on first use. What a sprite looks like (mean colour,
can it be recoloured) is measured, not curated: see `sprite_facts.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Literal

from vega_diffusion.errors import InvalidValue

FormKind = Literal["count", "mass", "plural", "proper"]


@dataclass(frozen=True)
class WordForm:
    """One way to say a noun.

    Args:
        text: The words without an article: "cat", "slice of pizza", "scissors", "bread", "Santa Claus".
        kind: "count" (a cat, two cats), "mass" (bread: no article, no plural, no size), "plural" (scissors: no
            article, cannot be counted) or "proper" (a name: no article, no plural).
        article: "a" or "an" for "count", else "".
        plural: The plural for "count", else "".
    """

    text: str
    kind: FormKind = "count"
    article: str = ""
    plural: str = ""


@dataclass(frozen=True)
class Variant:
    """An alternative drawing of a person: who is shown, and in which styles."""

    gender: Literal["person", "man", "woman"]
    styles: tuple[str, ...]


@dataclass(frozen=True)
class Noun:
    """One thing that can be drawn.

    Args:
        name: Its key everywhere ("cup of coffee").
        slug: Its icon in every set.
        group: animals, food, persons, ...
        styles: Styles that draw it (with variants: at least one of them).
        forms: Ways to say it, the plainest first.
        animate: It can eat, look or hold.
        person: A profession, drawn in `variants`.
        lettering: Carries letters, digits or a fixed left and right: never mirror it.
        plural_only: Its plain form is a plural (glasses, scissors, grapes).
        variants: Icon slug -> drawing, for persons; empty for all others.
        confusable_with: Nouns and things that look alike: leave the pair out of tests.
    """

    name: str
    slug: str
    group: str
    styles: tuple[str, ...]
    forms: tuple[WordForm, ...]
    animate: bool = False
    person: bool = False
    lettering: bool = False
    plural_only: bool = False
    variants: Mapping[str, Variant] = field(default_factory=dict)
    confusable_with: tuple[str, ...] = ()

    @property
    def synonyms(self) -> tuple[str, ...]:
        """The other words for it."""
        return tuple(form.text for form in self.forms[1:])

    @cached_property
    def countable_forms(self) -> tuple[WordForm, ...]:
        """The forms that take an article and a number; empty only for names."""
        return tuple(form for form in self.forms if form.kind == "count")

    def drawings(self, style: str) -> tuple[str, ...]:
        """Icon slugs that draw it in a style: its own and those of its variants; empty when the style has none."""
        if not self.variants:
            return (self.slug,) if style in self.styles else ()
        return tuple(slug for slug, variant in self.variants.items() if style in variant.styles)


@dataclass(frozen=True)
class Vocabulary:
    """All nouns by name, in a fixed order."""

    nouns: Mapping[str, Noun]

    def noun(self, name: str) -> Noun:
        """Return one noun.

        Raises:
            InvalidValue: There is no such noun.
        """
        try:
            return self.nouns[name]
        except KeyError:
            raise InvalidValue("noun", name, "a noun of vocabulary.json", "see load_vocabulary().names") from None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all nouns."""
        return tuple(self.nouns)

    @cached_property
    def slugs(self) -> tuple[str, ...]:
        """Every icon that a scene may need, sorted: what `fetch_icons` has to rasterise."""
        found = {noun.slug for noun in self.nouns.values()}
        found |= {slug for noun in self.nouns.values() for slug in noun.variants}
        return tuple(sorted(found))

    @cached_property
    def plural_forms(self) -> tuple[WordForm, ...]:
        """All forms that take "are": scissors, grapes."""
        return tuple(form for noun in self.nouns.values() for form in noun.forms if form.kind == "plural")

    def drawn_by(self, style: str) -> tuple[Noun, ...]:
        """The nouns that a style draws, in the vocabulary's order."""
        return tuple(noun for noun in self.nouns.values() if style in noun.styles)


@cache
def load_vocabulary() -> Vocabulary:
    """Read `vocabulary.json` (once; no network)."""
    table = json.loads((files("vega_diffusion.data.scenes") / "vocabulary.json").read_text(encoding="utf-8"))
    return Vocabulary({name: _noun(name, entry) for name, entry in table.items()})


def _noun(name: str, entry: dict) -> Noun:
    values = dict(entry)
    values["styles"] = tuple(values["styles"])
    values["forms"] = tuple(WordForm(**form) for form in values["forms"])
    values["variants"] = {
        slug: Variant(item["gender"], tuple(item["styles"])) for slug, item in values.get("variants", {}).items()
    }
    values["confusable_with"] = tuple(values.get("confusable_with", ()))
    return Noun(name=name, **values)
