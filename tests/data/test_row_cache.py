"""Cached rows: each made once, by however many at once; what was cut off is made again; nothing whole is."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vega_diffusion.data.row_cache import BATCH, CHUNK, RowCache
from vega_diffusion.errors import VegaError

FIELDS = {"wide": (3, 2), "narrow": (1,)}
COUNT = 3 * CHUNK + 70


class Maker:
    """Rows that hold their own number; counts who made what."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.made: Counter[int] = Counter()
        self.killed_at, self.lock = killed_at, threading.Lock()

    def __call__(self, rows: range) -> tuple[dict[str, np.ndarray], list[dict[str, int]]]:
        if self.killed_at is not None and self.killed_at in rows:
            raise KeyboardInterrupt
        with self.lock:
            self.made.update(rows)
        numbers = np.array(rows, dtype=np.float32)
        wide = numbers[:, None, None] + np.arange(6, dtype=np.float32).reshape(3, 2) / 8
        return {"wide": wide, "narrow": -numbers[:, None]}, [{"row": row} for row in rows]


def check(cache: RowCache, count: int) -> None:
    expected, notes = Maker()(range(count))
    for name, values in expected.items():
        found = cache.field(name, count)
        assert found.dtype == np.float16
        assert np.array_equal(found, values.astype(np.float16))
    assert cache.notes(count) == notes


def test_processes_share_the_work_and_make_every_row_once(tmp_path: Path) -> None:
    # A lock belongs to an open file, so threads that each open the cache stand in for processes.
    shared = Maker()
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(RowCache(tmp_path, {"a": 1}, FIELDS).fill, COUNT, shared) for _ in range(3)]:
            done.result()
    assert shared.made == Counter(range(COUNT))
    check(RowCache(tmp_path, {"a": 1}, FIELDS), COUNT)


def test_a_chunk_that_another_process_holds_is_left_to_it_until_the_end(tmp_path: Path) -> None:
    mine, other, order = Maker(), Maker(), []
    holding, finish = threading.Event(), threading.Event()

    def slow(rows: range) -> tuple[dict[str, np.ndarray], list[dict[str, int]]]:
        holding.set()
        assert finish.wait(60)
        return other(rows)

    def quick(rows: range) -> tuple[dict[str, np.ndarray], list[dict[str, int]]]:
        order.append(rows.start)
        if rows.start == CHUNK + BATCH:
            finish.set()
        return mine(rows)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(RowCache(tmp_path, {}, FIELDS).fill, CHUNK, slow)
        assert holding.wait(60)
        cache = RowCache(tmp_path, {}, FIELDS)
        cache.fill(2 * CHUNK, quick)
        held.result()
    assert order == list(range(CHUNK, 2 * CHUNK, BATCH))
    assert set(other.made) == set(range(CHUNK))
    check(cache, 2 * CHUNK)


def test_a_killed_build_goes_on_from_its_last_whole_row(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, {}, FIELDS)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(COUNT, Maker(killed_at=2 * BATCH + 3))
    notes = next((cache.folder / "chunks").iterdir())
    notes.write_bytes(notes.read_bytes() + b'{"row": 12')  # killed while it wrote a note
    with open(cache.folder / "wide.f16", "ab") as file:
        file.write(b"half a row")
    again = Maker()
    cache.fill(COUNT, again)
    assert again.made == Counter(range(2 * BATCH, COUNT))
    check(cache, COUNT)


def test_a_longer_cache_only_adds_and_a_shorter_one_reads_its_part(tmp_path: Path) -> None:
    cache, more = RowCache(tmp_path, {}, FIELDS), Maker()
    cache.fill(CHUNK + 5, Maker())
    cache.fill(COUNT, more)
    assert more.made == Counter(range(CHUNK + 5, COUNT))
    check(cache, COUNT)
    cache.fill(10, more)
    check(cache, 10)
    assert more.made == Counter(range(CHUNK + 5, COUNT))


def test_progress_only_grows_and_ends_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    RowCache(tmp_path, {}, FIELDS).fill(COUNT, Maker(), lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[0][0] == BATCH
    assert seen[-1] == (COUNT, COUNT)


def test_another_identity_is_another_folder(tmp_path: Path) -> None:
    one, other = (RowCache(tmp_path, {"weights": name}, FIELDS) for name in "ab")
    assert one.folder != other.folder
    assert one.folder == RowCache(tmp_path, {"weights": "a"}, FIELDS).folder


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VegaError, match="cannot be written"):
        RowCache(tmp_path / "file", {}, FIELDS).fill(1, Maker())
