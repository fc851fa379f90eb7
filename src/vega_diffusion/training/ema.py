"""The exponential moving average of a student's weights.

Kept in fp32 beside the student, updated after every optimizer step on the student's device without a host sync.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vega_diffusion.specs.optimizer import EmaSpec
from vega_diffusion.training.sharding import split_like


def ema_decay(spec: EmaSpec, step: int) -> float:
    """Return the decay of update number `step` (from 0): min(decay, (1 + step) / (warmup + step))."""
    return min(spec.decay, (1 + step) / (spec.warmup + step))


class Ema:
    """Averages of the parameters that learn at the start of a run; the rest of a student never moves.

    Args:
        spec: Decay and warm-up.
        student: The module whose parameters are averaged.
    """

    def __init__(self, spec: EmaSpec, student: nn.Module) -> None:
        self.spec = spec
        self.names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
        self._last: tuple[nn.Module, list[nn.Parameter]] | None = None
        self.averages = [parameter.detach().float().clone() for parameter in self._parameters(student)]

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Move the averages: average = d * average + (1 - d) * weight, with d of this step."""
        weights = [parameter.detach().float() for parameter in self._parameters(student)]
        torch._foreach_lerp_(self.averages, weights, 1.0 - ema_decay(self.spec, step))

    @contextmanager
    def applied(self, student: nn.Module) -> Iterator[None]:
        """Put the averages in place of the weights for a while; the weights come back untouched."""
        parameters = self._parameters(student)
        kept = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, average in zip(parameters, self.averages, strict=True):
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(parameters, kept, strict=True):
                    parameter.copy_(weight)

    def state_dict(self) -> dict[str, Tensor]:
        """Return name -> average."""
        return dict(zip(self.names, self.averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over saved averages; `state_dict` is the inverse."""
        if state.keys() != set(self.names):
            raise ValueError("the saved averages belong to other parameters")
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(split_like(average, state[name]))

    def _parameters(self, student: nn.Module) -> list[nn.Parameter]:
        # Kept, as to walk a student's tree of modules takes longer than to move the averages of adapters.
        if self._last is None or self._last[0] is not student:
            table = dict(student.named_parameters())
            self._last = student, [table[name] for name in self.names]
        return self._last[1]
