"""Folders of files that are costly to make, kept under a name that says all that they depend on.

An entry is made in a folder of a temporary name and renamed when whole, with the hashes of its files in `index.json`;
every opening checks them, or that the files lie there untouched. A damaged entry is said in one line and made anew.
What the files are is their makers' matter; nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vega_diffusion.errors import MissingFile
from vega_diffusion.inference.backends.faults import WAYS_OUT, Fault, Say
from vega_diffusion.models.home import vega_home

INDEX = "index.json"
Identity = Mapping[str, Any]
# A maker that was killed leaves its folder; after this long nobody is still working in it.
_ABANDONED_S = 24 * 3600.0


class Store:
    """Entries below one folder, shared by processes.

    Attributes:
        home: The folder; made at the first entry.
        say: Gets one line a damaged or a newly made entry.
    """

    def __init__(self, say: Say, home: Path | None = None) -> None:
        """Name the folder: `$VEGA_HOME/openvino` unless given."""
        self.home = home or vega_home() / "openvino"
        self.say = say

    def path(self, identity: Identity) -> Path:
        """Return where the entry of an identity lies or would lie; `identity["what"]` begins its name."""
        digest = hashlib.sha256(_canonical(identity).encode()).hexdigest()
        return self.home / f"{identity['what']}-{digest[:24]}"

    def find(self, identity: Identity, way_out: str = WAYS_OUT[Fault.DAMAGED_CACHE].line) -> Path | None:
        """Return the folder of a whole entry, or None; a damaged one is said in one line, `way_out`, and removed."""
        path = self.path(identity)
        if not path.is_dir():
            return None
        reason = damage(path, identity)
        if reason is None:
            return path
        self.say(f"{path}: {Fault.DAMAGED_CACHE.value} ({reason}); {way_out}")
        self.remove(identity)
        return None

    def identities(self, what: str) -> Iterator[dict[str, Any]]:
        """Yield what the entries of a kind say that they are; whether they are whole is not looked at."""
        for path in sorted(self.home.glob(f"{what}-*/{INDEX}")):
            try:
                told = json.loads(path.read_text())["identity"]
                if told["what"] == what:
                    yield told
            except (OSError, ValueError, KeyError, TypeError):
                continue

    def like(self, identity: Identity, key: str) -> Identity | None:
        """Return the identity of an entry that differs from this one in one key at most; of several, the highest."""
        wanted = _canonical({**identity, key: None})
        found = [one for one in self.identities(identity["what"]) if _canonical({**one, key: None}) == wanted]
        return max(found, key=lambda one: str(one.get(key)), default=None)

    def remove(self, identity: Identity) -> None:
        """Remove an entry, if it is there."""
        shutil.rmtree(self.path(identity), ignore_errors=True)

    def make(self, identity: Identity, build: Callable[[Path], None]) -> Path:
        """Make an entry and return its folder; of two processes that make the same one, the first wins.

        Args:
            identity: All that its content depends on: numbers, texts, lists and mappings of them.
            build: Writes the files into the folder that it is given.

        Raises:
            MissingFile: The folder cannot be written.
        """
        final = self.path(identity)
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._sweep()
            building = Path(tempfile.mkdtemp(prefix=".making-", dir=self.home))
        except OSError as error:
            raise MissingFile(
                f"{self.home}: cannot be written ({error.strerror}); set VEGA_HOME to a folder that can"
            ) from error
        try:
            build(building)
            _seal(building, identity)
            os.rename(building, final)
        except OSError as error:
            # rename fails on a folder that is there and not empty: someone else was faster
            if self.find(identity) is None:
                raise MissingFile(f"{final}: cannot be written ({error.strerror}); make room there") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return final

    def _sweep(self) -> None:
        """Remove folders that killed makers left."""
        for left in self.home.glob(".making-*"):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def damage(path: Path, identity: Identity) -> str | None:
    """Return what is wrong with an entry, or None."""
    try:
        index = json.loads((path / INDEX).read_text())
        files, told, seals = dict(index["files"]), index["identity"], dict(index.get("seals", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return f"{INDEX} cannot be read"
    if _canonical(told) != _canonical(identity):
        return f"{INDEX} belongs to something else"
    for name, sha256 in files.items():
        try:
            # Hashing gigabytes takes seconds. Writing to a file, and copying it, change its seal.
            if seals.get(name) != _seal_of(path / name) and _sha256(path / name) != sha256:
                return f"{name} has changed"
        except OSError:
            return f"{name} is missing"
    return None


def _seal_of(path: Path) -> list[int]:
    """Return what tells whether a file was touched: size, times of writing and of change of any kind, inode."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _seal(folder: Path, identity: Identity) -> None:
    """Write the index and have everything on the disk before it gets its name."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    index = {
        "identity": identity,
        "files": {name: _sha256(path) for name, path in files.items()},
        "seals": {name: _seal_of(path) for name, path in files.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))
    for path in (*files.values(), folder / INDEX):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(identity: Identity) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))
