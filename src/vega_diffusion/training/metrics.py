"""A run's numbers: one JSON object a line in `metrics.jsonl`, and with its pictures in TensorBoard or W&B.

Sums are kept on the device and read once every `log_every` steps, so that a step never waits for the host.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Averages:
    """Means of scalars since the last `take`, summed where the tensors are."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        """Add scalars; `weight` is their share of a step."""
        for name, value in values.items():
            scaled = value.detach() * weight
            self._sums[name] = self._sums[name] + scaled if name in self._sums else scaled
            self._counts[name] = self._counts.get(name, 0.0) + weight

    def take(self, over_ranks: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, float]:
        """Return the means and start anew; this is the one place that waits for the device.

        Args:
            over_ranks: Averages a tensor over the processes of a run.
        """
        names = list(self._sums)
        means = over_ranks(torch.stack([self._sums[name].float() / self._counts[name] for name in names]))
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))


class Tracker(Protocol):
    """Where numbers and pictures go beside the file."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step."""
        ...

    def picture(self, step: int, path: Path) -> None:
        """Take a PNG of a step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class MetricsLog:
    """Writes numbers and shows pictures; only the main process has one.

    Args:
        path: The JSONL file.
        tracker: Gets the same numbers, and pictures; None where there is none.
        start_step: Step the run starts or resumes from; lines of later steps belong to a lost future and are removed.
    """

    def __init__(self, path: Path, tracker: Tracker | None, start_step: int) -> None:
        self.path, self._tracker = path, tracker
        _drop_lines_after(path, start_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run, closed by close())

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line and flush it."""
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line |= {name: round(value, 8) for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._tracker is not None:
            self._tracker.write(step, values)

    def picture(self, step: int, path: Path) -> None:
        """Show a PNG that lies in the run's folder."""
        if self._tracker is not None:
            self._tracker.picture(step, path)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; an unfinished last line (a killed run) is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
