"""The guard against losses that are not finite, and the guard against losing a run to a signal."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from vega_diffusion.errors import VegaError


class NotFinite(VegaError):
    """The loss or the gradient is not finite; the message names the step and the samples."""


class RunStopped(VegaError):
    """A signal ended the run after its state was saved; the exit code is 128 plus the signal's number."""

    def __init__(self, number: int, step: int, folder: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; state saved in {folder}")
        self.exit_code = 128 + number


class FiniteGuard:
    """Collects which samples had a finite loss, on the device, and reads it only when asked."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Sequence[int], Tensor, dict[str, Tensor]]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def observe(
        self, step: int, positions: Sequence[int], per_sample: Tensor, parts: Mapping[str, Tensor] | None = None
    ) -> None:
        """Note one micro-batch's per-sample losses `[B]`, and its loss's parts (scalars) by name."""
        finite = {name: torch.isfinite(value) for name, value in (parts or {}).items()}
        self._steps.append((step, positions, torch.isfinite(per_sample), finite))

    def observe_norm(self, step: int, norm: Tensor) -> None:
        """Note a step's gradient norm (where no loss scaler expects overflows)."""
        self._norms.append((step, torch.isfinite(norm)))

    def bad(self) -> tuple[int, list[int], list[str]] | None:
        """Return the first step that was not finite, its sample positions and the parts, or None; waits for the device.

        No part is named where the loss was finite and the gradient was not.
        """
        steps, norms, self._steps, self._norms = self._steps, self._norms, [], []
        for step, positions, finite, parts in steps:
            flags = finite.tolist()
            if not all(flags):
                bad = [p for p, good in zip(positions, flags, strict=True) if not good]
                return step, bad, [name for name, good in parts.items() if not bool(good)]
        for step, finite in norms:
            if not bool(finite):
                return step, [p for s, positions, _, _ in steps if s == step for p in positions], []
        return None


class StopSignals:
    """Remembers the first SIGTERM or SIGINT; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    @contextmanager
    def watched(self) -> Iterator[StopSignals]:
        """Listen for the length of a `with`; only the main thread can, elsewhere this does nothing."""
        try:
            previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            previous = {}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
