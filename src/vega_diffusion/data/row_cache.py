"""Rows that are computed once and kept on disk: numbers in files of equal records, a JSON note with each row.

Several processes fill one cache together: rows come in chunks, a chunk's notes file is also its lock, and whoever finds
a chunk locked takes the next. A lock ends with its process, so a chunk that a killed process left is finished by
another one, or by the next build. What the rows mean is told by `latent_cache` and `prompt_cache`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vega_diffusion.errors import VegaError

CHUNK = 256
BATCH = 64

Make = Callable[[range], tuple[Mapping[str, np.ndarray], Sequence[Any]]]
"""Row numbers -> one array `[len(rows), ...]` for each field, and one JSON value for each row."""
Progress = Callable[[int, int], object]


def folder_name(identity: Mapping[str, str | int]) -> str:
    """Return what the folder of a cache of this identity is called."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]


class RowCache:
    """One cache on disk.

    Args:
        root: Folder of all caches of a kind.
        identity: All that decides the rows but their number; its hash names the cache's folder.
        fields: Field -> shape of one row; all fields hold fp16.

    Attributes:
        folder: Where it lies.
    """

    def __init__(self, root: Path, identity: Mapping[str, str | int], fields: Mapping[str, tuple[int, ...]]) -> None:
        self.identity = json.dumps(identity, sort_keys=True)
        self.folder = root / folder_name(identity)
        self.fields = dict(fields)

    def fill(self, count: int, make: Make, progress: Progress = lambda done, total: None) -> None:
        """Make the rows below `count` that are not there yet, sharing them with other processes that do the same.

        Args:
            count: Rows wanted; on return all of them are there.
            make: Computes rows; a pure function of the row numbers.
            progress: Called with (how far this process has come, rows wanted).

        Raises:
            VegaError: The disk is full; what was made is kept.
        """
        furthest = 0

        def report(row: int) -> None:
            nonlocal furthest
            furthest = max(furthest, row)
            progress(furthest, count)

        try:
            (self.folder / "chunks").mkdir(parents=True, exist_ok=True)
            (self.folder / "identity.json").write_text(self.identity, encoding="utf-8")
            # First what nobody is at, then what others were at: by then they are done, or gone.
            for wait in (False, True):
                for start in range(0, count, CHUNK):
                    self._fill_chunk(range(start, min(start + CHUNK, count)), make, wait, report)
        except OSError as error:
            raise VegaError(
                f"{self.folder}: cannot be written ({error.strerror}); free disk space and run again, "
                "what is encoded is kept"
            ) from error

    def field(self, name: str, count: int) -> np.ndarray:
        """Return the first `count` rows of a field, fp16 `[count, ...]`, as a read-only memory map."""
        return np.memmap(self._file(name), np.float16, "r", shape=(count, *self.fields[name]))

    def notes(self, count: int) -> list[Any]:
        """Return the notes of the first `count` rows."""
        lines: list[bytes] = []
        for start in range(0, count, CHUNK):
            lines += self._chunk(start).read_bytes().splitlines()
        return [json.loads(line) for line in lines[:count]]

    def _fill_chunk(self, rows: range, make: Make, wait: bool, report: Callable[[int], object]) -> None:
        with open(self._chunk(rows.start), "a+b") as notes:
            try:
                fcntl.flock(notes, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                report(rows.stop)
                return
            notes.seek(0)
            whole = notes.read().rpartition(b"\n")[0]
            # A note is written after its numbers, so a whole line stands for a whole row; half a line goes.
            notes.truncate(len(whole) + 1 if whole else 0)
            first = rows.start + (whole.count(b"\n") + 1 if whole else 0)
            for start in range(first, rows.stop, BATCH):
                part = range(start, min(start + BATCH, rows.stop))
                arrays, said = make(part)
                for name in self.fields:
                    self._write(name, part.start, arrays[name])
                notes.write(b"".join(json.dumps(one).encode() + b"\n" for one in said))
                _flush(notes)
                report(part.stop)
            report(rows.stop)

    def _write(self, name: str, row: int, values: np.ndarray) -> None:
        record = 2 * int(np.prod(self.fields[name]))
        with suppress(FileExistsError):
            self._file(name).touch(exist_ok=False)
        with open(self._file(name), "r+b") as file:
            file.seek(row * record)
            file.write(values.astype(np.float16).tobytes())
            _flush(file)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.f16"

    def _chunk(self, start: int) -> Path:
        return self.folder / "chunks" / f"{start:010d}.jsonl"


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
