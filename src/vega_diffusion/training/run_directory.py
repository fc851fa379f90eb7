"""The folder of one run: where it lies, what is in it, and that only one process works in it.

Layout: `recipe.json`, `states/` (state.py), `ema/<component>/` (the published weights), `metrics.jsonl`,
`samples/`, `tensorboard/`, `lock`. It lies under `$VEGA_HOME`, outside any checkout.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.specs.lora import LORA_FILE


def vega_home() -> Path:
    """Return `$VEGA_HOME`, or `vega-diffusion` in the user's cache directory; it need not exist."""
    given = os.environ.get("VEGA_HOME")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vega-diffusion"


class RunDirectory:
    """Paths of one run.

    Args:
        name: Name of the run, a plain file name.
        home: Where runs are kept; `$VEGA_HOME/runs` unless given.

    Raises:
        InvalidValue: The name is not a plain file name.
    """

    def __init__(self, name: str, home: Path | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InvalidValue("--run-name", name, "letters, digits, dot, dash and underscore", "rename the run")
        self.name = name
        self.path = (home or vega_home() / "runs") / name
        self.states = self.path / "states"
        self.ema = self.path / "ema"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples"
        self.tensorboard = self.path / "tensorboard"
        self.recipe = self.path / "recipe.json"
        self.data = self.path / "data.json"

    def create(self) -> None:
        """Make the folders.

        Raises:
            MissingFile: The folder cannot be made or written.
        """
        try:
            for folder in (self.path, self.states, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MissingFile(f"{self.path}: cannot be made ({error.strerror}); set VEGA_HOME to a folder") from error

    def is_done(self, steps: int) -> bool:
        """Whether the run has published weights and a state of its last step."""
        return (self.states / f"step-{steps:08d}").is_dir() and self.ema.is_dir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            VegaError: Another process trains in it.
        """
        with open(self.path / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise VegaError(
                    f"run {self.name}: another process is training in {self.path}; wait for it or use --run-name"
                ) from error
            yield


def run_weights(name: str, component: str) -> Path:
    """Return the folder with another run's averaged weights of a component.

    Raises:
        MissingFile: That run has published none.
    """
    folder = RunDirectory(name).ema / component
    if (RunDirectory(name).ema / LORA_FILE).is_file():
        raise MissingFile(f"run:{name}: holds adapters and no {component} weights; name what they were trained on")
    if not folder.is_dir():
        raise MissingFile(f"run:{name}: no {component} weights in {folder}; train that recipe first")
    return folder
