"""Replays a training step on a GPU: recorded once as a CUDA graph, then started by one call instead of thousands.

A mini network's step is thousands of kernels of a few microseconds each; a processor cannot start them as fast as a GPU
ends them. What Python decides in a step (who teaches, what is frozen) is recorded with it, so a step is recorded anew
whenever that changes; `objectives` say what it is. The first replay is compared with a plain step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.protocol import Recordable
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.compiled import compare_gradients

Step = Callable[[Batch, PositionRng], dict[str, Tensor]]
"""Samples and their randomness -> losses by name; leaves gradients behind."""

_WARM_UPS = 3  # as torch asks for: libraries choose their kernels and workspaces in the first calls


class StandingRng(PositionRng):
    """Draws that stay in one place of memory: a recorded step reads them there, `renew` puts others in.

    Args:
        rng: Whose draws come first.
    """

    def __init__(self, rng: PositionRng) -> None:
        super().__init__(rng.seed, rng.positions, rng.device, rng.run_position)
        self._drawn: dict[tuple[Hashable, ...], Tensor] = {}

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """As `PositionRng.normal`."""
        return self._standing("normal", tuple(shape), purpose)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """As `PositionRng.uniform`."""
        return self._standing("uniform", purpose, tuple(shape))

    def integers(self, low: int, high: int, purpose: str) -> Tensor:
        """As `PositionRng.integers`."""
        return self._standing("integers", low, high, purpose)

    def renew(self, rng: PositionRng) -> None:
        """Put the draws of other positions, as many as these, where these are."""
        self.positions, self.run_position = rng.positions, rng.run_position
        for (name, *arguments), standing in self._drawn.items():
            standing.copy_(_draw(rng, name, arguments), non_blocking=True)

    def _standing(self, name: str, *arguments: Hashable) -> Tensor:
        key = (name, *arguments)
        if key not in self._drawn:
            moving = PositionRng(self.seed, self.positions, self.device, self.run_position)
            self._drawn[key] = _draw(moving, name, arguments)
        return self._drawn[key]


def _draw(rng: PositionRng, name: Hashable, arguments: Iterable[Any]) -> Tensor:
    return getattr(rng, str(name))(*arguments)


class StepReplay:
    """Steps of one shape, recorded and replayed.

    Args:
        objective: Says what Python decides in a step.
        student: What learns.
    """

    def __init__(self, objective: Recordable, student: nn.Module) -> None:
        self._objective, self._student = objective, student
        self._key: Hashable = None
        self._graph: Any = None
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []
        self.recorded = 0

    def __call__(self, step: Step, batch: Batch, rng: PositionRng, phase: Hashable = None) -> dict[str, Tensor]:
        """Do a step: leave its gradients and return its losses, which the next call overwrites.

        Args:
            step: What is recorded; where the objective decides sample by sample, it is called as it is.
            batch: The samples, on the GPU.
            rng: Their randomness.
            phase: What else Python decides (what is frozen); another value records the step anew.

        Raises:
            VegaError: The replayed gradients are not those of a plain step.
        """
        decided = self._objective.decided(rng)
        if decided is None:
            return step(batch, rng)
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(batch.tensors.items()))
        if self._key != (phase, decided, shapes):
            self._record(step, batch, rng)
            self._key = phase, decided, shapes
        else:
            for name, standing in self._batch.tensors.items():
                standing.copy_(batch.tensors[name], non_blocking=True)
            self._rng.renew(rng)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return dict(self._losses)

    def _record(self, step: Step, batch: Batch, rng: PositionRng) -> None:
        self._graph, self._gradients = None, []  # lets go of the old one's memory first
        parameters = {name: one for name, one in self._student.named_parameters() if one.requires_grad}
        tensors = {name: tensor.clone() for name, tensor in batch.tensors.items()}
        self._batch, self._rng = Batch(batch.sample_ids, tensors, batch.captions), StandingRng(rng)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                _forget(parameters)
                step(self._batch, self._rng)
        torch.cuda.current_stream().wait_stream(beside)
        plain = {name: one.grad.detach().float().clone() for name, one in parameters.items() if one.grad is not None}
        _forget(parameters)
        graph = torch.cuda.CUDAGraph()
        # Threads that load samples ahead use the device meanwhile, on streams of their own.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._losses = step(self._batch, self._rng)
        self._gradients = [(one, one.grad) for one in parameters.values() if one.grad is not None]
        self._graph = graph
        self.recorded += 1
        graph.replay()
        replayed = {name: one.grad.float() for name, one in parameters.items() if one.grad is not None}
        compare_gradients(plain, replayed, "cuda_graphs: the recorded step led", "train with --set cuda_graphs=false")


def open_replay(
    recipe: TrainRecipe,
    accelerator: Accelerator,
    objective: object,
    student: nn.Module,
    warn: Callable[[str], None],
) -> StepReplay | None:
    """Return what replays a run's steps where the recipe asks for it; None, with a line, where that cannot be."""
    if not recipe.cuda_graphs:
        return None
    reasons = {
        f"steps run on {accelerator.device.type}": accelerator.device.type != "cuda",
        "there are several processes": accelerator.num_processes > 1,
        "fp16 scales its losses": accelerator.scaler is not None,
        "a step has several micro-batches": recipe.micro_batch_size < recipe.batch_size,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is None and isinstance(objective, Recordable):
        return StepReplay(objective, student)
    warn(f"cuda_graphs: nothing is recorded, as {reason or 'this objective cannot be'}")
    return None


def _forget(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None
