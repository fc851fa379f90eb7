"""The folder of one run: where it lies, what is in it, and that only one process works in it.

Layout: `recipe.json`, `states/` (state.py), `ema/<component>/` (the published weights) and
`ema/step.json` (their step), `metrics.jsonl`, `samples/`, `tensorboard/`, `lock`. It lies under `$VEGA_HOME`, outside
any checkout, unless a path is given (`at`).
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.models.home import vega_home
from vega_diffusion.specs.lora import LORA_FILE
from vega_diffusion.specs.recipe import TrainRecipe

PUBLISHED_STEP = "step.json"


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
        self._lay_out(name, (home or vega_home() / "runs") / name, "tensorboard")

    @classmethod
    def at(cls, path: Path, logs: str = "tensorboard") -> RunDirectory:
        """Return the run whose folder is `path`, wherever that lies; `logs` is TensorBoard's folder in it."""
        found = cls.__new__(cls)
        whole = path.expanduser().absolute()
        found._lay_out(whole.name, whole, logs)
        return found

    def _lay_out(self, name: str, path: Path, logs: str) -> None:
        self.name, self.path = name, path
        self.states = path / "states"
        self.ema = path / "ema"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.tensorboard = path / logs
        self.recipe = path / "recipe.json"
        self.data = path / "data.json"

    def create(self) -> None:
        """Make the folders.

        Raises:
            MissingFile: The folder cannot be made or written.
        """
        try:
            for folder in (self.path, self.states, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = "set VEGA_HOME to a folder" if self.path.is_relative_to(vega_home()) else "name another folder"
            raise MissingFile(f"{self.path}: cannot be made ({error.strerror}); {where}") from error

    def is_done(self, recipe: TrainRecipe) -> bool:
        """Whether the run has a state of the recipe's last step and has published that step's weights.

        Raises:
            VegaError: It has, and they are of another recipe.
        """
        # Weights of runs from before they named their step are taken for those of the state.
        published = self.published_step() in (None, recipe.steps)
        if not ((self.states / f"step-{recipe.steps:08d}").is_dir() and self.ema.is_dir() and published):
            return False
        changed = recipe.changed_keys(TrainRecipe.from_json(self.recipe.read_text(encoding="utf-8")).identity())
        if changed:
            raise VegaError(
                f"run {self.name}: was trained by another recipe ({', '.join(changed)}); go back to its values, or "
                f"move {self.path} away"
            )
        return True

    def published_step(self) -> int | None:
        """Return the step whose weights are published; None where there are none, or they do not say."""
        try:
            return int(json.loads((self.ema / PUBLISHED_STEP).read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def missing_steps(self) -> str | None:
        """Return how far the published weights are ("step 120 of 470"); None where they are of the run's last step."""
        step = self.published_step()
        try:
            planned = TrainRecipe.from_json(self.recipe.read_text(encoding="utf-8")).steps
        except (OSError, VegaError):  # of an older version; what it planned is not known
            return None
        return None if step in (None, planned) else f"step {step} of {planned}"

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


def unfinished(reference: str) -> str | None:
    """Return how far a run is ("run:NAME: step 120 of 470"); None where it is done, or the reference is no run."""
    if not reference.startswith("run:"):
        return None
    missing = RunDirectory(reference.removeprefix("run:")).missing_steps()
    return missing and f"{reference}: {missing}"


def run_weights(name: str, component: str) -> Path:
    """Return the folder with another run's averaged weights of a component.

    Raises:
        MissingFile: That run has published none.
    """
    folder = RunDirectory(name).ema / component
    if (RunDirectory(name).ema / LORA_FILE).is_file():
        raise MissingFile(
            f"run:{name}: holds adapters and no {component} weights; export it first: vega export {name} FOLDER"
        )
    if not folder.is_dir():
        raise MissingFile(f"run:{name}: no {component} weights in {folder}; train that recipe first")
    return folder
