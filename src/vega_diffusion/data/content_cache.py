"""Rows that are computed once and found again by the content they came from, however it is called or ordered.

A store is append-only: numbers in files of equal records, and a list of keys, a line each, written after them. Changing
one picture computes one row; renaming or reordering computes none. Several processes fill one store together: keys fall
into groups, each with a lock, and whoever finds a group locked takes the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vega_diffusion.data.row_cache import Progress
from vega_diffusion.errors import VegaError

MakeRows = Callable[[Sequence[str]], np.ndarray]
"""Keys -> one row each, `[len(keys), ...]`."""

GROUPS = 64


class ContentCache:
    """One store of rows of one shape.

    Args:
        root: Folder of all stores of a kind.
        identity: What decides the rows beside their keys; its hash names the store's folder.
        shape: Of one row; kept in fp16.
    """

    def __init__(self, root: Path, identity: Mapping[str, str | int], shape: tuple[int, ...]) -> None:
        self.identity = json.dumps(identity, sort_keys=True)
        self.folder = root / hashlib.sha256(self.identity.encode()).hexdigest()[:20]
        self.shape = shape
        self._known: dict[str, int] = {}
        self._read_bytes = 0

    def rows(
        self, keys: Sequence[str], make: MakeRows, batch_size: int = 1, progress: Progress = lambda done, total: None
    ) -> tuple[np.ndarray, list[int]]:
        """Return all rows as a read-only memory map, and which of them belong to these keys.

        Args:
            keys: Content hashes; the same one may come twice.
            make: Computes rows.
            batch_size: How many keys `make` gets at once, at most.
            progress: Called with (missing keys that this process has done, missing keys).

        Raises:
            VegaError: The disk is full; what was computed is kept.
        """
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            (self.folder / "identity.json").write_text(self.identity, encoding="utf-8")
            with suppress(FileExistsError):
                (self.folder / "rows.f16").touch(exist_ok=False)
            self._fill(keys, make, batch_size, progress)
        except OSError as error:
            raise VegaError(
                f"{self.folder}: cannot be written ({error.strerror}); free disk space and run again, "
                "what is computed is kept"
            ) from error
        rows = np.memmap(self.folder / "rows.f16", np.float16, "r", shape=(len(self._known), *self.shape))
        return rows, [self._known[key] for key in keys]

    def _fill(self, keys: Sequence[str], make: MakeRows, batch_size: int, progress: Progress) -> None:
        with self._index():
            missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        groups: dict[int, list[str]] = {}
        for key in missing:
            groups.setdefault(hashlib.sha256(key.encode()).digest()[0] % GROUPS, []).append(key)
        done = 0
        # First what nobody is at, then what others were at: by then they are done, or gone.
        for wait in (False, True):
            for group, members in groups.items():
                with open(self.folder / "locks" / str(group), "w") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    except BlockingIOError:
                        continue
                    with self._index():
                        left = [key for key in members if key not in self._known]
                    for start in range(0, len(left), batch_size):
                        part = left[start : start + batch_size]
                        self._append(part, make(part))
                        done += len(part)
                        progress(done, len(missing))

    @contextmanager
    def _index(self) -> Iterator[BinaryIO]:
        """Hold the list of keys, with `_known` up to date; half a line that a killed process left is cut off."""
        with open(self.folder / "keys.txt", "a+b") as index:
            fcntl.flock(index, fcntl.LOCK_EX)
            if index.seek(0, os.SEEK_END) < self._read_bytes:  # another store than before lies here
                self._known, self._read_bytes = {}, 0
            index.seek(self._read_bytes)
            whole, line_end, _ = index.read().rpartition(b"\n")
            for line in whole.splitlines():
                self._known[line.decode()] = len(self._known)
            self._read_bytes += len(whole) + len(line_end)
            index.truncate(self._read_bytes)
            yield index

    def _append(self, keys: Sequence[str], rows: np.ndarray) -> None:
        if rows.shape != (len(keys), *self.shape):
            raise AssertionError(f"rows of {rows.shape}, wanted {(len(keys), *self.shape)}")
        record = 2 * int(np.prod(self.shape))
        with self._index() as index:
            with open(self.folder / "rows.f16", "r+b") as file:
                file.seek(len(self._known) * record)
                file.write(rows.astype(np.float16).tobytes())
                file.flush()
                os.fsync(file.fileno())
            # A key is written after its numbers, so a whole line stands for a whole row.
            lines = b"".join(key.encode() + b"\n" for key in keys)
            index.write(lines)
            index.flush()
            os.fsync(index.fileno())
            self._read_bytes += len(lines)
            self._known.update({key: len(self._known) + number for number, key in enumerate(keys)})
