"""TensorBoard and W&B behind one small interface (`metrics.Tracker`). Both are optional packages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vega_diffusion.training.metrics import Tracker
from vega_diffusion.training.run_directory import RunDirectory

PROJECT = "vega-diffusion"


class TensorBoard:
    """Event files in the run's folder.

    Args:
        folder: Where they go.
        start_step: Events of later steps belong to a lost future and are purged.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """Take a PNG of a step."""
        with Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B named like ours; `WANDB_MODE=offline` keeps it in the run's folder.

    Args:
        directory: The run; its name and place are the W&B run's id, so that a resumed run goes on there.
        config: What to show beside the curves.
    """

    def __init__(self, directory: RunDirectory, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]  # optional

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=project,
            name=directory.name,
            id=f"{directory.name}-{hashlib.sha256(str(directory.path.resolve()).encode()).hexdigest()[:8]}",
            resume="allow",
            dir=str(directory.path),
            config=dict(config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Take a PNG of a step."""
        self._run.log({"samples": self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


def open_tracker(
    kind: str | None,
    directory: RunDirectory,
    start_step: int,
    config: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Tracker | None:
    """Return a run's tracker; one whose package is not installed is said and replaced, since the file has the numbers.

    Args:
        kind: `tensorboard`, `wandb` or None.
        directory: The run.
        start_step: Where it starts or resumes.
        config: The recipe, flat.
        warn: Called with one line where something is missing.
    """
    if kind == "wandb":
        try:
            return WeightsAndBiases(directory, config)
        except ImportError:
            warn(
                "tracker: wandb is not installed (pip install 'vega-diffusion[wandb]'); TensorBoard and metrics.jsonl "
                "take its place"
            )
    if kind is None:
        return None
    try:
        return TensorBoard(directory.tensorboard, start_step)
    except ImportError:
        warn("tracker: tensorboard is not installed (pip install 'vega-diffusion[train]'); numbers go to metrics.jsonl")
        return None
