"""Leaves pictures out before training and says of every filter what it removed, and whose pictures the rest are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from vega_diffusion.data.near_duplicates import first_alike
from vega_diffusion.data.picture_index import Picture, PictureIndex
from vega_diffusion.errors import InvalidValue, Unavailable, VegaError
from vega_diffusion.specs.curation import CurationSpec

Removed = Iterable[tuple[Picture, str]]
"""Pictures that a filter removes, each with a reason."""

LICENCE_COLUMNS = ("license", "licence")
SOURCE_COLUMNS = ("url", "original_url", "source")
MOST_SOURCES = 20

CLEARLY_OTHER = 8.0
"""A caption is left out where another language is e^8 times as likely: "a castle" is Galician by e^6."""


@dataclass(frozen=True)
class CurationReport:
    """What became of a collection.

    Args:
        collection: Where it lies.
        found: Pictures that were there, usable or not.
        kept: Pictures that training sees.
        left_out: Reason -> names, in the order of the filters.
        licences: Licence -> kept pictures that say so; `not stated` for those that say nothing.
        sources: Host of the address a picture came from -> kept pictures, the commonest twenty.
    """

    collection: str
    found: int
    kept: int
    left_out: dict[str, tuple[str, ...]]
    licences: dict[str, int]
    sources: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        left_out = {reason: {"pictures": len(names), "names": list(names)} for reason, names in self.left_out.items()}
        whose = {"licences": self.licences, "sources": self.sources}
        return {"collection": self.collection, "found": self.found, "kept": self.kept, "left_out": left_out, **whose}

    def __str__(self) -> str:
        lines = [f"{self.collection}: {self.found:,} pictures, {self.kept:,} kept"]
        lines += [f"  left out {len(names):>8,}  {why} (first {names[0]})" for why, names in self.left_out.items()]
        for title, counts in (("licence", self.licences), ("from", self.sources)):
            lines += [f"  {title:<8} {number:>8,}  {name}" for name, number in counts.items()]
        return "\n".join(lines)


def curate(index: PictureIndex, spec: CurationSpec) -> tuple[PictureIndex, CurationReport]:
    """Apply a spec's filters one after the other; a later one sees what earlier ones let through.

    Returns:
        The pictures that stay, with the reasons of all others, and the report.

    Raises:
        InvalidValue: No picture has the column that a filter reads.
        Unavailable: `languages` is given and py3langid is not installed.
        VegaError: Nothing stays.
    """
    pictures, left_out = list(index.pictures), {why: list(names) for why, names in index.left_out.items()}
    for find in _filters(spec):
        removed = {picture.number: reason for picture, reason in find(pictures)}
        for picture in pictures:
            if picture.number in removed:
                left_out.setdefault(removed[picture.number], []).append(picture.name)
        pictures = [picture for picture in pictures if picture.number not in removed]
    reasons = {why: tuple(names) for why, names in left_out.items()}
    kept = replace(index, pictures=tuple(pictures), left_out=reasons)
    found = len(pictures) + sum(len(names) for names in reasons.values())
    report = CurationReport(
        index.collection.name, found, len(pictures), reasons, _licences(pictures), _sources(pictures)
    )
    if not pictures:
        raise VegaError(f"data.filters: nothing is left; {report}".replace("\n", "; "))
    return kept, report


def _filters(spec: CurationSpec) -> list[Callable[[Sequence[Picture]], Removed]]:
    """Return the filters that are set, in the order of the spec's fields."""
    found: list[Callable[[Sequence[Picture]], Removed]] = []
    if spec.min_size_px is not None:
        least = spec.min_size_px
        found.append(lambda some: _where(some, lambda p: min(p.size) < least, f"smaller than {least} px"))
    if spec.max_aspect is not None:
        most = spec.max_aspect
        found.append(lambda some: _where(some, lambda p: max(p.size) > most * min(p.size), f"longer than {most:g} : 1"))
    if spec.duplicates:
        found.append(_equal_files)
    if spec.near_duplicate_bits is not None:
        bits = spec.near_duplicate_bits
        found.append(lambda some: _alike(some, bits))
    for what, limit, column in (
        ("watermark", spec.max_watermark, spec.watermark_column),
        ("unsafe", spec.max_unsafe, spec.unsafe_column),
    ):
        if limit is not None:
            found.append(lambda some, w=what, high=limit, c=column: _scored(some, w, high, c))
    if spec.min_caption_words is not None or spec.max_caption_words is not None:
        found.append(lambda some: _caption_length(some, spec.min_caption_words or 1, spec.max_caption_words))
    if spec.languages:
        found.append(lambda some: _other_language(some, spec.languages))
    for column, values in spec.columns.items():
        found.append(lambda some, c=column, allowed=values: _other_value(some, c, allowed))
    return found


def _where(pictures: Sequence[Picture], condition: Callable[[Picture], bool], reason: str) -> Removed:
    return [(picture, reason) for picture in pictures if condition(picture)]


def _equal_files(pictures: Sequence[Picture]) -> Removed:
    seen: set[str] = set()
    for picture in pictures:
        if picture.sha256 in seen:
            yield picture, "the same file as another"
        seen.add(picture.sha256)


def _alike(pictures: Sequence[Picture], bits: int) -> Removed:
    first = first_alike([picture.looks for picture in pictures], bits)
    return [(picture, "looks like another") for place, picture in enumerate(pictures) if first[place] != place]


def _scored(pictures: Sequence[Picture], what: str, limit: float, column: str) -> Removed:
    values = _column(pictures, column, f"filters.{what}_column")
    for picture, value in zip(pictures, values, strict=True):
        if not isinstance(value, int | float) or math.isnan(value):
            yield picture, f"without a number in {column}"
        elif float(value) > limit:
            yield picture, f"{column} above {limit:g}"


def _caption_length(pictures: Sequence[Picture], least: int, most: int | None) -> Removed:
    for picture in pictures:
        words = len(picture.caption.split())
        if words < least:
            yield picture, f"caption of fewer than {least} words"
        elif most is not None and words > most:
            yield picture, f"caption of more than {most} words"


def _other_language(pictures: Sequence[Picture], languages: tuple[str, ...]) -> Removed:
    try:
        import py3langid
    except ImportError as error:
        raise Unavailable("py3langid: not installed; pip install 'vega-diffusion[data]'") from error

    def foreign(picture: Picture) -> bool:
        scores = dict(py3langid.rank(picture.caption))  # logarithms of likelihoods
        unknown = sorted(set(languages) - scores.keys())
        if unknown:
            raise InvalidValue("filters.languages", unknown[0], "ISO 639-1 codes such as en, de, zh", "correct it")
        return max(scores.values()) - max(scores[one] for one in languages) > CLEARLY_OTHER

    return _where(pictures, foreign, f"caption not in {' or '.join(languages)}")


def _other_value(pictures: Sequence[Picture], column: str, allowed: Sequence[Any]) -> Removed:
    values = _column(pictures, column, "filters.columns")
    shown = ", ".join(str(value) for value in allowed)
    return [
        (picture, f"{column} other than {shown}")
        for picture, value in zip(pictures, values, strict=True)
        if not any(type(value) is type(one) and value == one for one in allowed)
    ]


def _column(pictures: Sequence[Picture], column: str, field: str) -> list[Any]:
    if pictures and not any(column in picture.facts for picture in pictures):
        there = sorted({name for picture in pictures[:1000] for name in picture.facts})
        raise InvalidValue(
            field, column, f"a column of the pictures: {', '.join(there) or 'there is none'}", "name one"
        )
    return [picture.facts.get(column) for picture in pictures]


def _licences(pictures: Sequence[Picture]) -> dict[str, int]:
    return _counted(_first_text(picture.facts, LICENCE_COLUMNS) or "not stated" for picture in pictures)


def _sources(pictures: Sequence[Picture]) -> dict[str, int]:
    hosts = [urlsplit(_first_text(picture.facts, SOURCE_COLUMNS)).netloc for picture in pictures]
    return dict(Counter(host for host in hosts if host).most_common(MOST_SOURCES))


def _first_text(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((facts[name] for name in names if isinstance(facts.get(name), str)), "")


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
