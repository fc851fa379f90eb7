"""Captioned pictures wherever they lie: what a collection is, and what reading every picture once tells about it.

Collections are a folder (`picture_folder`), shards (`picture_shards`) and a data set (`picture_dataset`). What a
picture looks like inside is remembered on disk under a stamp of its bytes' place, so that a second start reads none.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageOps

from vega_diffusion.data.near_duplicates import look_hash
from vega_diffusion.diffusion.randomness import derive_seed
from vega_diffusion.errors import VegaError

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a collection before it is read.

    Args:
        name: By which a user can find it again.
        caption: Empty where there is none.
        stamp: Differs whenever the picture's bytes may differ.
        facts: What else the collection says of it: licence, source, scores.
        problem: Why it cannot be used; empty where nothing is known against it.
    """

    name: str
    caption: str
    stamp: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


class Collection(Protocol):
    """Captioned pictures in one place."""

    name: str

    def entries(self) -> Sequence[Entry]:
        """Return all pictures in a fixed order."""
        ...

    def read(self, number: int) -> bytes:
        """Return the file of entry `number`.

        Raises:
            OSError: It cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One usable picture.

    Args:
        number: Of its entry in the collection.
        name: As the collection calls it.
        caption: Not empty.
        size: (width, height) in px as it is shown.
        sha256: Of its file.
        looks: Its hash of 88 bits (`near_duplicates`).
        facts: What else the collection says of it.
    """

    number: int
    name: str
    caption: str
    size: tuple[int, int]
    sha256: str
    looks: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_size(self) -> tuple[int, int]:
        """(width, height) before a download scaled it down (img2dataset's `original_width`), else as it is."""
        width, height = self.facts.get("original_width"), self.facts.get("original_height")
        return (width, height) if isinstance(width, int) and isinstance(height, int) else self.size


class Captioned:
    """A collection of which one caption is said, whatever captions it has of its own.

    Args:
        collection: The pictures.
        caption: Said of each.
    """

    def __init__(self, collection: Collection, caption: str) -> None:
        self.collection, self.caption, self.name = collection, caption, collection.name

    def entries(self) -> list[Entry]:
        """Return all pictures with that caption."""
        return [replace(entry, caption=self.caption) for entry in self.collection.entries()]

    def read(self, number: int) -> bytes:
        """Return the file of entry `number`."""
        return self.collection.read(number)


@dataclass(frozen=True)
class PictureIndex:
    """Usable pictures in the collection's order, and reason -> names of those left out."""

    collection: Collection
    pictures: tuple[Picture, ...]
    left_out: dict[str, tuple[str, ...]]

    def read(self, picture: Picture) -> bytes:
        """Return a picture's file.

        Raises:
            VegaError: It cannot be read any more, or is another than when it was indexed.
        """
        try:
            content = self.collection.read(picture.number)
        except UNREADABLE as error:
            raise VegaError(
                f"{self.collection.name}: {picture.name} was there and cannot be read now ({error}); bring it back or "
                "start again without it, what is encoded is kept"
            ) from error
        if hashlib.sha256(content).hexdigest() != picture.sha256:
            raise VegaError(f"{self.collection.name}: {picture.name} has changed since it was indexed; start again")
        return content

    def split(self, count: int, seed: int) -> tuple[PictureIndex, PictureIndex]:
        """Return `count` pictures chosen by (seed, file), and the others, both in the collection's order."""
        drawn = sorted(self.pictures, key=lambda one: (derive_seed(seed, one.sha256, "chosen"), one.number))[:count]
        chosen = {one.number for one in drawn}
        first = tuple(one for one in self.pictures if one.number in chosen)
        rest = tuple(one for one in self.pictures if one.number not in chosen)
        return replace(self, pictures=first), replace(self, pictures=rest)

    def __str__(self) -> str:
        reasons = "; ".join(f"{len(names):,} {reason} (first {names[0]})" for reason, names in self.left_out.items())
        return f"{len(self.pictures):,} pictures" + (f", left out: {reasons}" if reasons else "")


def index_pictures(
    collection: Collection, root: Path | None = None, progress: Progress = lambda done, total: None
) -> PictureIndex:
    """Read every picture of a collection that was not read before.

    Args:
        collection: The pictures.
        root: Folder of all indexes; None remembers nothing.
        progress: Receives (pictures done, pictures in all).

    Raises:
        VegaError: The collection cannot be read, or no picture can be used.
    """
    entries = collection.entries()
    pictures: list[Picture] = []
    left_out: dict[str, list[str]] = {}
    with _memory(root, collection.name) as (known, remember):
        for number, entry in enumerate(entries):
            if entry.problem:
                left_out.setdefault(entry.problem, []).append(entry.name)
                continue
            seen = known.get(entry.stamp) or _look(collection, number)
            if seen is not None and entry.stamp not in known:
                remember(entry.stamp, seen)
            if seen is None or seen.size is None:
                left_out.setdefault("unreadable", []).append(entry.name)
            elif not entry.caption:
                left_out.setdefault("without a caption", []).append(entry.name)
            else:
                pictures.append(
                    Picture(number, entry.name, entry.caption, seen.size, seen.sha256, seen.looks, entry.facts)
                )
            progress(number + 1, len(entries))
    found = PictureIndex(collection, tuple(pictures), {why: tuple(names) for why, names in left_out.items()})
    if not pictures:
        raise VegaError(f"{collection.name}: no picture with a caption ({found}); see vega data curate")
    return found


def opened(content: bytes) -> Image.Image:
    """Return a picture from its file, turned as it is shown, RGB, with white behind what is transparent.

    Of an animation it is the first picture, of 16 bits a channel the upper ones.

    Raises:
        OSError: It is no picture or is cut short.
    """
    with Image.open(io.BytesIO(content)) as picture:
        turned = ImageOps.exif_transpose(picture)
        if turned.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255 instead of scaling
            turned = turned.convert("I").point(lambda level: level / 257).convert("L")
        if "A" not in turned.getbands() and "transparency" not in turned.info:
            return turned.convert("RGB")
        turned = turned.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned).convert("RGB")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one picture looks like inside; no size where it cannot be read."""

    sha256: str
    size: tuple[int, int] | None
    looks: int


def _look(collection: Collection, number: int) -> _Seen | None:
    """Return what a picture looks like; None where its file cannot be read now, which says nothing of the next time."""
    try:
        content = collection.read(number)
    except OSError:
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        picture = opened(content)
    except UNREADABLE:
        return _Seen(sha256, None, 0)
    return _Seen(sha256, picture.size, look_hash(picture))


@contextmanager
def _memory(root: Path | None, name: str) -> Iterator[tuple[dict[str, _Seen], Callable[[str, _Seen], object]]]:
    """Give stamp -> what a picture looks like, as it was remembered, and a function that remembers one more.

    Lines of JSON that only grow; processes take turns. A line that cannot be read is like one that is not there.
    """
    if root is None:
        yield {}, lambda stamp, seen: None
        return
    path = root / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            if content and not content.endswith(b"\n"):  # a killed process left half a line: close it
                file.write(b"\n")

            def remember(stamp: str, seen: _Seen) -> None:
                file.write(json.dumps([stamp, seen.sha256, seen.size, seen.looks]).encode() + b"\n")

            yield _remembered(content), remember
    except OSError as error:
        raise VegaError(f"{path}: cannot be written ({error.strerror}); free disk space and run again") from error


def _remembered(content: bytes) -> dict[str, _Seen]:
    found = {}
    for line in content.splitlines():
        with suppress(ValueError, TypeError):
            stamp, sha256, size, looks = json.loads(line)
            found[stamp] = _Seen(sha256, tuple(size) if size else None, looks)
    return found
