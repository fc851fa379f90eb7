"""Entries of the store are whole or not there; damage is said in one line; makers in a race do not hurt each other."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import vega_diffusion.inference.backends.store as store_module
from vega_diffusion.errors import MissingFile
from vega_diffusion.inference.backends.store import INDEX, Store
from vega_diffusion.models.home import vega_home

IDENTITY = {"what": "thing", "weights": "abc", "shape": [1, 2], "rule": {"a": 0.5}}


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, lines: list[str]) -> Store:
    return Store(lines.append, tmp_path / "home")


def write(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"content")
    (folder / "a.xml").write_text("<a/>")


def test_an_entry_is_found_again_under_its_identity_alone(store: Store, lines: list[str]) -> None:
    assert store.find(IDENTITY) is None
    made = store.make(IDENTITY, write)
    assert made.name.startswith("thing-")
    assert store.find(dict(reversed(IDENTITY.items()))) == made
    for field, value in (("weights", "abd"), ("shape", [2, 1]), ("rule", {"a": 0.6})):
        assert store.find(IDENTITY | {field: value}) is None
    assert lines == []
    assert [path.name for path in store.home.iterdir()] == [made.name]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.bin", b"cOntent", "a.bin has changed"),
        ("a.bin", b"", "a.bin has changed"),
        ("a.xml", None, "a.xml is missing"),
        (INDEX, b"{", "index.json cannot be read"),
        (INDEX, b"[]", "index.json cannot be read"),
        (INDEX, None, "index.json cannot be read"),
        (INDEX, b'{"files": {}, "identity": {"what": "other"}}', "index.json belongs to something else"),
    ],
)
def test_damage_is_one_line_and_the_entry_is_gone(
    store: Store, lines: list[str], name: str, content: bytes | None, reason: str
) -> None:
    made = store.make(IDENTITY, write)
    (made / name).unlink() if content is None else (made / name).write_bytes(content)
    assert store.find(IDENTITY) is None
    assert lines == [f"{made}: a kept file is damaged ({reason}); it is made anew"]
    assert not made.exists()
    assert store.make(IDENTITY, write) == store.find(IDENTITY) == made


def test_untouched_files_are_not_read_again_and_touched_ones_are(
    store: Store, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.make(IDENTITY, write)
    read: list[str] = []
    hashed = store_module._sha256
    monkeypatch.setattr(store_module, "_sha256", lambda path: (read.append(path.name), hashed(path))[1])
    assert (store.find(IDENTITY), read) == (made, [])
    os.utime(made / "a.bin")
    assert (store.find(IDENTITY), read) == (made, ["a.bin"])
    same_size_and_time = (made / "a.bin").stat()
    (made / "a.bin").write_bytes(b"cOntent")
    os.utime(made / "a.bin", ns=(same_size_and_time.st_atime_ns, same_size_and_time.st_mtime_ns))
    assert store.find(IDENTITY) is None
    assert lines == [f"{made}: a kept file is damaged (a.bin has changed); it is made anew"]


def test_a_maker_that_fails_leaves_nothing(store: Store) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        store.make(IDENTITY, fail)
    assert list(store.home.iterdir()) == []


def test_the_first_of_two_makers_wins(store: Store) -> None:
    def slow(folder: Path) -> None:
        store.make(IDENTITY, write)
        (folder / "a.bin").write_bytes(b"made later")

    made = store.make(IDENTITY, slow)
    assert (made / "a.bin").read_bytes() == b"content"
    assert store.find(IDENTITY) == made
    assert len(list(store.home.iterdir())) == 1


def test_what_killed_makers_left_is_swept_when_old(store: Store) -> None:
    store.make(IDENTITY, write)
    young, old = store.home / ".making-young", store.home / ".making-old"
    young.mkdir()
    old.mkdir()
    long_ago = time.time() - 10**6
    os.utime(old, (long_ago, long_ago))
    store.make(IDENTITY | {"weights": "other"}, write)
    assert young.exists()
    assert not old.exists()


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingFile, match="cannot be written .*; set VEGA_HOME to a folder that can"):
        Store(lines.append, tmp_path / "file" / "home").make(IDENTITY, write)


def test_the_home_is_below_vega_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str]) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    assert vega_home() == tmp_path
    assert Store(lines.append).home == tmp_path / "openvino"


def test_the_index_says_what_the_entry_is(store: Store) -> None:
    index = json.loads((store.make(IDENTITY, write) / INDEX).read_text())
    assert index["identity"] == IDENTITY
    assert sorted(index["files"]) == ["a.bin", "a.xml"]
