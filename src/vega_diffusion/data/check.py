"""Looks through a folder of pictures and captions and reports what would spoil a training; changes nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vega_diffusion.data.picture_folder import caption_of, list_folder, sidecar
from vega_diffusion.data.picture_index import UNREADABLE
from vega_diffusion.errors import InvalidValue


@dataclass
class FolderReport:
    """What `check_folder` found; paths are relative to the folder.

    Args:
        num_images: Files with the suffix of a picture.
        num_captions: Pictures with a caption that is not empty.
        unreadable: Pictures that cannot be decoded to the last pixel.
        duplicates: Groups of pictures with equal pixels.
        missing_captions: Pictures without a caption, or with an empty one.
        missing_images: Captions whose picture is not there.
        too_small: Pictures with a side below `min_size_px`.
        sizes: "WIDTHxHEIGHT" -> number of pictures, the commonest first.
    """

    folder: str
    min_size_px: int
    num_images: int = 0
    num_captions: int = 0
    unreadable: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    missing_captions: list[str] = field(default_factory=list)
    missing_images: list[str] = field(default_factory=list)
    too_small: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def problems(self) -> dict[str, int]:
        """Kind of problem -> how many, only those that occur."""
        kinds = ("unreadable", "duplicates", "missing_captions", "missing_images", "too_small")
        return {kind: len(getattr(self, kind)) for kind in kinds if getattr(self, kind)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, with `ok` and `problems`."""
        return {**asdict(self), "problems": self.problems, "ok": not self.problems}


def check_folder(
    folder: Path,
    *,
    min_size_px: int = 128,
    caption_column: str = "text",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> FolderReport:
    """Read every picture and every caption of a folder.

    Captions come from `metadata.jsonl` or `metadata.csv` (column `file_name`) in any subfolder, else from a text file
    beside the picture (`cat.png`, `cat.txt`).

    Args:
        folder: Is searched with its subfolders; hidden files are left out.
        min_size_px: Shortest side that a picture should have.
        caption_column: Column of the metadata that holds the caption.
        progress: Receives (pictures done, pictures in all).

    Raises:
        InvalidValue: `min_size_px` is below 1.
        MissingFile: There is no such folder.
        VegaError: A metadata file cannot be read, or lacks `file_name`.
    """
    if min_size_px < 1:
        raise InvalidValue("min_size", min_size_px, "1 or more", "give the shortest allowed side in px")
    images, rows = list_folder(folder, caption_column)
    report = FolderReport(str(folder), min_size_px, num_images=len(images))
    sizes: Counter[str] = Counter()
    by_pixels: dict[str, list[str]] = {}
    for number, path in enumerate(images):
        name = path.relative_to(folder).as_posix()
        read = _read(path)
        if read is None:
            report.unreadable.append(name)
        else:
            (width, height), digest = read
            sizes[f"{width}x{height}"] += 1
            by_pixels.setdefault(digest, []).append(name)
            if min(width, height) < min_size_px:
                report.too_small.append(name)
        if (caption_of(rows.get(path, {}), caption_column) or sidecar(path)).strip():
            report.num_captions += 1
        else:
            report.missing_captions.append(name)
        progress(number + 1, len(images))
    there = set(images)
    report.missing_images = [
        path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        for path in rows
        if path not in there
    ]
    report.duplicates = [group for group in by_pixels.values() if len(group) > 1]
    report.sizes = dict(sizes.most_common())
    return report


def _read(path: Path) -> tuple[tuple[int, int], str] | None:
    """Return ((width, height), hash of the pixels), or None where the file cannot be decoded."""
    try:
        with Image.open(path) as picture:
            pixels = picture.convert("RGBA")
            digest = hashlib.blake2b(f"{pixels.size}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
            return pixels.size, digest
    except UNREADABLE:
        return None
