"""A folder of pictures as a collection: files, captions beside them or in metadata, and the metadata's other columns.

Captions come from `metadata.jsonl` or `metadata.csv` (column `file_name`) in any subfolder, else from a text file
beside the picture (`cat.png`, `cat.txt`). Nothing is changed.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from vega_diffusion.data.picture_index import Entry
from vega_diffusion.errors import MissingFile, VegaError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class FolderPictures:
    """The pictures of a folder and its subfolders in the order of their names; hidden files are left out.

    Args:
        folder: The folder.
        caption_column: Column of the metadata that holds the caption.

    Raises:
        MissingFile: There is no such folder.
        VegaError: A metadata file cannot be read, or lacks `file_name`.
    """

    def __init__(self, folder: Path, caption_column: str = "text") -> None:
        self.folder, self.column, self.name = folder, caption_column, str(folder)
        self.paths, self.rows = list_folder(folder, caption_column)

    def entries(self) -> list[Entry]:
        """Return all pictures; a file that was written anew gets another stamp."""
        return [self._entry(path) for path in self.paths]

    def read(self, number: int) -> bytes:
        """Return the file of entry `number`."""
        return self.paths[number].read_bytes()

    def _entry(self, path: Path) -> Entry:
        name, row = path.relative_to(self.folder).as_posix(), self.rows.get(path, {})
        caption = (caption_of(row, self.column) or sidecar(path)).strip()
        facts = {key: value for key, value in row.items() if key not in ("file_name", self.column)}
        return Entry(name, caption, f"{name} {file_stamp(path)}", facts)


def file_stamp(path: Path) -> str:
    """Return what changes when a file is written anew; the time of the last change of its entry cannot be set."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def list_folder(folder: Path, caption_column: str) -> tuple[list[Path], dict[Path, dict[str, Any]]]:
    """Return the pictures of a folder, and picture -> row of its metadata files.

    Raises:
        MissingFile: There is no such folder.
        VegaError: A metadata file cannot be read, or lacks `file_name`.
    """
    if not folder.is_dir():
        raise MissingFile(f"{folder}: no such folder; give the folder that holds the pictures")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path, folder)]
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES], _metadata(files, caption_column)


def sidecar(path: Path) -> str:
    """Return the text beside a picture, empty where there is none."""
    text = path.with_suffix(".txt")
    try:
        return text.read_text(encoding="utf-8", errors="replace") if text.is_file() else ""
    except OSError:
        return ""


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _metadata(files: list[Path], column: str) -> dict[Path, dict[str, Any]]:
    """Return picture -> row as all metadata files say it."""
    found: dict[Path, dict[str, Any]] = {}
    for path in files:
        if path.name not in ("metadata.jsonl", "metadata.csv"):
            continue
        for line, row in _rows(path):
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise VegaError(
                    f"{path}: line {line} has no file_name; allowed: one object a line with file_name and {column}"
                )
            found[path.parent / row["file_name"]] = row
    return found


def caption_of(row: dict[str, Any], column: str) -> str:
    """Return the caption of a metadata row, empty where it has none."""
    caption = row.get(column)
    return caption if isinstance(caption, str) else ""


def _rows(path: Path) -> list[tuple[int, Any]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                return [(number, row) for number, row in enumerate(csv.DictReader(file), start=2)]
            return [(number, json.loads(line)) for number, line in enumerate(file, start=1) if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise VegaError(f"{path}: cannot be read ({error}); write one JSON object a line") from error
