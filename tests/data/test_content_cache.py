"""A store by content: one row a key, nothing twice, also by several processes; half a line is cut off."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vega_diffusion.data.content_cache import ContentCache
from vega_diffusion.errors import VegaError


class Maker:
    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, keys: Sequence[str]) -> np.ndarray:
        self.made += keys
        return np.stack([np.full((2, 3), float(key)) for key in keys])


def test_rows_belong_to_keys_whatever_their_order(tmp_path: Path):
    maker, store = Maker(), ContentCache(tmp_path, {"a": 1}, (2, 3))
    rows, where = store.rows(["3", "1", "2", "1"], maker, batch_size=2)
    assert [float(rows[row][0, 0]) for row in where] == [3, 1, 2, 1]
    assert maker.made == ["3", "1", "2"]
    rows, where = store.rows(["2", "9", "3"], maker)
    assert [float(rows[row][1, 2]) for row in where] == [2, 9, 3]
    assert maker.made == ["3", "1", "2", "9"]  # one new key, one new row
    assert ContentCache(tmp_path, {"a": 2}, (2, 3)).folder != store.folder


def test_half_a_line_is_made_again(tmp_path: Path):
    maker, store = Maker(), ContentCache(tmp_path, {}, (2, 3))
    store.rows(["11", "12", "13"], maker)
    keys = store.folder / "keys.txt"
    keys.write_bytes(keys.read_bytes()[:-1])  # killed while the last key was written
    rows, where = ContentCache(tmp_path, {}, (2, 3)).rows(["13", "12"], maker)
    assert maker.made == ["11", "12", "13", "13"]
    assert [float(rows[row][0, 0]) for row in where] == [13, 12]


def test_what_was_made_before_the_disk_was_full_is_kept(tmp_path: Path):
    maker, store = Maker(), ContentCache(tmp_path, {}, (2, 3))
    store.rows(["1", "2"], maker)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (26, hard))
    try:
        with pytest.raises(VegaError, match="free disk space"):
            store.rows(["3"], maker)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    rows, where = store.rows(["1", "2", "3"], maker)
    assert maker.made == ["1", "2", "3", "3"]
    assert [float(rows[row][0, 0]) for row in where] == [1, 2, 3]
    with pytest.raises(AssertionError):
        store.rows(["4"], lambda keys: np.zeros((1, 2)))


FILL = """
import sys, time
import numpy as np
from pathlib import Path
from vega_diffusion.data.content_cache import ContentCache

made = []
def make(keys):
    made.extend(keys)
    time.sleep(0.01)
    return np.stack([np.full((2, 3), float(key)) for key in keys])

rows, where = ContentCache(Path(sys.argv[1]), {}, (2, 3)).rows([str(n) for n in range(200)], make, batch_size=4)
assert [float(rows[row][1, 1]) for row in where] == list(range(200))
print(len(made))
"""


def test_processes_fill_a_store_together(tmp_path: Path):
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = [int(process.communicate()[0]) for process in running]
    assert sum(made) == 200  # nothing twice
    assert sum(number > 0 for number in made) > 1  # and not one after the other
    (keys,) = tmp_path.glob("*/keys.txt")
    assert sorted(map(int, keys.read_text().split())) == list(range(200))
