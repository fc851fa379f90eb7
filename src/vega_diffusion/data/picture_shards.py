"""Tar shards (WebDataset, img2dataset) as a collection: any sample is read at once by its place in its file.

A sample is the members that share a name up to the first dot: a picture, and its caption and columns in `.json` or its
caption in `.txt`. Of several of a kind, `1.jpg` and `1.mask.png`, the one without a further suffix counts; a sample of
which two could be the picture is left out. Reading by place rather than in a stream keeps a run's order exact, also
after a resume.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vega_diffusion.data.picture_folder import IMAGE_SUFFIXES, caption_of, file_stamp
from vega_diffusion.data.picture_index import Entry
from vega_diffusion.errors import MissingFile, VegaError

_Member = TypeVar("_Member")


@dataclass
class _Sample:
    """Members of one sample by what follows its name, `jpg` or `mask.png`; a place is (first byte, number of bytes)."""

    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)


class ShardPictures:
    """All samples of the `.tar` files of a folder, in the order of the files' names and of the samples' own names.

    The order in a file may be that of a download, another one every time.

    Args:
        folder: Holds the shards; or one shard.
        caption_column: Key of a sample's `.json` that holds the caption, else its `.txt` does.

    Raises:
        MissingFile: There is no shard.
        VegaError: A shard is no tar file or is cut short.
    """

    def __init__(self, folder: Path, caption_column: str = "text") -> None:
        self.name, self.column = str(folder), caption_column
        self.shards = [folder] if folder.is_file() else sorted(folder.glob("*.tar"))
        if not self.shards:
            raise MissingFile(f"{folder}: no .tar file; give the folder of the shards, or vega data download makes one")
        self._places: list[tuple[Path, int, int]] = []

    def entries(self) -> list[Entry]:
        """Return all samples that have a picture; a shard that was written anew gives other stamps."""
        found: list[Entry] = []
        self._places = []
        for shard in self.shards:
            try:
                stamp = file_stamp(shard)
                samples = _samples(shard)
            except (OSError, tarfile.TarError, EOFError) as error:
                raise VegaError(f"{shard}: cannot be read ({error}); fetch it again or move it away") from error
            for key, sample in sorted(samples.items()):
                pictures, columns = _own(sample.pictures), (_own(sample.columns) or [{}])[-1]
                if not pictures:
                    continue
                caption = (caption_of(columns, self.column) or (_own(sample.texts) or [""])[-1]).strip()
                facts = {name: value for name, value in columns.items() if name != self.column}
                problem = "with several pictures" if len(pictures) > 1 else ""
                found.append(Entry(f"{shard.name}/{key}", caption, f"{shard.name} {stamp} {key}", facts, problem))
                self._places.append((shard, *pictures[0]))
        return found

    def read(self, number: int) -> bytes:
        """Return the picture file of entry `number`."""
        shard, start, length = self._places[number]
        with open(shard, "rb") as file:
            file.seek(start)
            content = file.read(length)
        if len(content) != length:
            raise OSError(f"{shard} is cut short")
        return content


def _samples(shard: Path) -> dict[str, _Sample]:
    """Return key -> sample of a shard."""
    samples: dict[str, _Sample] = {}
    with tarfile.open(shard, "r:") as archive:
        for member in _files(archive):
            folder, _, file = member.name.rpartition("/")
            stem, _, kind = file.partition(".")
            sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
            suffix = f".{kind.rpartition('.')[2].lower()}"
            if suffix in IMAGE_SUFFIXES:
                sample.pictures[kind] = (member.offset_data, member.size)
            elif suffix == ".txt":
                sample.texts[kind] = _content(archive, member).decode("utf-8", "replace")
            elif suffix == ".json":
                sample.columns[kind] = _columns(_content(archive, member))
    return samples


def _own(members: dict[str, _Member]) -> list[_Member]:
    """Return what is a sample's own among members of a kind: those of one suffix, else those there are."""
    return [member for kind, member in members.items() if "." not in kind] or list(members.values())


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in archive if member.isfile())


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _columns(content: bytes) -> dict[str, Any]:
    """Return a sample's columns, none where its JSON is broken: it then counts as without a caption."""
    try:
        columns = json.loads(content)
    except ValueError:
        return {}
    return columns if isinstance(columns, dict) else {}
