"""Settings that every test needs: one thread, no network, the same hypothesis examples on every run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from warm_commands import warm_commands

# Fixtures of tiny model folders, shared by the tests of the engine, of the commands and of training.
pytest_plugins = ["tiny_models", "tiny_distillation"]

# A property that fails only on some runs would be blamed on whoever pushes next; a slow shared core is no failure.
settings.register_profile("project", derandomize=True, deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On two busy cores, two threads make a tiny step many times slower than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _sprites_of_the_package_are_read_once() -> Iterator[None]:
    """Every run on scenes opens the sheets, which takes longer than its few steps; they never change."""
    from vega_diffusion.data.scenes.atlas import SpriteAtlas, sample_folder

    read = SpriteAtlas.load
    kept: dict[object, SpriteAtlas] = {}

    def load(
        folder: Path | None = None, *, styles: Sequence[str] | None = None, slugs: Iterable[str] | None = None
    ) -> SpriteAtlas:
        chosen = None if styles is None else tuple(styles), None if slugs is None else frozenset(slugs)
        if folder not in (None, sample_folder()):
            return read(folder, styles=chosen[0], slugs=chosen[1])
        if chosen not in kept:
            kept[chosen] = read(folder, styles=chosen[0], slugs=chosen[1])
        return kept[chosen]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpriteAtlas, "load", staticmethod(load))
        yield


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder with `vega` and `python` that need not import what takes long."""
    with TemporaryDirectory() as folder, warm_commands(Path(folder)) as found:
        yield found


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse connections to other machines: a test that needs one would pass here and fail elsewhere."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise OSError(f"tests use no network, and {address[0]} is another machine")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield
