"""torch.compile, region by region: the repeated resnets and transformer blocks are compiled, once for each shape.

Compiling whole U-Nets takes minutes and again for every shape; regions of equal shape share one compilation. On CUDA,
whole graphs with CUDA graphs are the alternative (`cuda_graphs`). Nothing is compiled before the first question of a
shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.protocol import Bucket, InUse, Question
from vega_diffusion.inference.backends.split import FullGraph, ShallowGraph
from vega_diffusion.inference.backends.torch_eager import TorchEager

REGIONS = ("ResnetBlock2D", "BasicTransformerBlock")
# Regions are compiled once for each combination of shapes; torch stops at 8 of them and goes on uncompiled.
_MAX_SHAPES = 256
_Answer = TypeVar("_Answer")


class TorchCompiled:
    """A U-Net in compiled torch; adapters injected into it act, and cost a new compilation where they change layers."""

    def __init__(
        self,
        unet_provider: Callable[[], Any],
        branch: int = 0,
        channels_last: bool = False,
        cuda_graphs: bool = False,
        compiler: str = "inductor",
    ) -> None:
        """Wrap a U-Net; it is marked for compilation until `close`.

        Args:
            unet_provider: As for `TorchEager`.
            branch: As for `TorchEager`.
            channels_last: As for `TorchEager`.
            cuda_graphs: Compile whole graphs and record them (`reduce-overhead`); CUDA alone.
            compiler: torch's name of it; tests use `eager`, which compiles nothing but takes the same road.

        Raises:
            InvalidValue: CUDA graphs on another device, or no such branch.
        """
        self._branch, self._cuda_graphs, self._compiler = branch, cuda_graphs, compiler
        self._marked: WeakSet[nn.Module] = WeakSet()
        self._whole: dict[str, Any] = {}
        self._owner: Any = None
        self._buckets: set[Bucket] = set()
        # torch keeps recorded graphs by thread: one that answers for all callers records each of them once
        self._thread = ThreadPoolExecutor(1, "cuda-graphs") if cuda_graphs else None
        self._provider = unet_provider
        self._eager = TorchEager(self._unet, branch, channels_last)
        device = self._eager.in_use.devices[0]
        if cuda_graphs and not device.startswith("cuda"):
            raise InvalidValue("cuda_graphs", True, f"False on {device}", "leave it out")

    @property
    def in_use(self) -> InUse:
        """What really runs; `is_compiled` once a question was answered by regions that torch has compiled."""
        return replace(self._eager.in_use, backend="torch-compiled", is_compiled=bool(self._buckets))

    @property
    def buckets(self) -> frozenset[Bucket]:
        """The shapes that were compiled for."""
        return frozenset(self._buckets)

    def predict(self, question: Question) -> Tensor:
        """Return the prediction `[N, C, h, w]`."""
        if self._cuda_graphs:
            return self.full(question)[0]
        with self._compiling(question):
            return self._eager.predict(question)

    def full(self, question: Question) -> tuple[Tensor, Tensor]:
        """Return the prediction `[N, C, h, w]` and the hidden state at the cut."""

        def answer() -> tuple[Tensor, Tensor]:
            with self._compiling(question):
                if not self._cuda_graphs:
                    return self._eager.full(question)
                prediction, deep = self._recorded("full", FullGraph)(**question.named())
                return prediction.clone(), deep.clone()  # the next replay overwrites them

        return self._answered(answer)

    def shallow(self, question: Question, deep: Tensor) -> Tensor:
        """Return the prediction from the layers above the cut and `deep`."""

        def answer() -> Tensor:
            with self._compiling(question):
                if not self._cuda_graphs:
                    return self._eager.shallow(question, deep)
                return self._recorded("shallow", ShallowGraph)(**question.named(), deep=deep).clone()

        return self._answered(answer)

    def close(self) -> None:
        """Unmark every region; the U-Net is as it was."""
        for module in self._marked:
            module._compiled_call_impl = None
        self._marked.clear()
        self._whole.clear()
        self._owner = None
        self._buckets.clear()
        self._eager.close()
        if self._thread is not None:
            self._thread.shutdown()

    def _answered(self, answer: Callable[[], _Answer]) -> _Answer:
        return answer() if self._thread is None else self._thread.submit(answer).result()

    def _unet(self) -> Any:
        unet = self._provider()
        if not self._cuda_graphs:
            for module in unet.modules():
                if type(module).__name__ in REGIONS and module not in self._marked:
                    module.compile(backend=self._compiler, dynamic=False, fullgraph=True)
                    self._marked.add(module)
        return unet

    def _recorded(self, name: str, graph: Any) -> Any:
        """Return a whole graph of the present U-Net, compiled with CUDA graphs."""
        unet = self._provider()
        if self._owner is not unet:
            self._owner, self._whole = unet, {}
        if name not in self._whole:
            module = graph(unet, self._branch)
            self._whole[name] = torch.compile(module, mode="reduce-overhead", dynamic=False, fullgraph=True)
        return self._whole[name]

    @contextmanager
    def _compiling(self, question: Question) -> Iterator[None]:
        """Let torch compile for as many shapes as there are; where it cannot compile a region whole, it raises."""
        from torch._dynamo import config

        limits = config.patch(recompile_limit=_MAX_SHAPES, fail_on_recompile_limit_hit=True)
        with torch.inference_mode(), limits, _best_convolutions() if self._cuda_graphs else nullcontext():
            yield
        if num_compiled_graphs():
            self._buckets.add(Bucket.of(question))


@contextmanager
def _best_convolutions() -> Iterator[None]:
    """Let cuDNN try its kernels out: a graph keeps those that it was recorded with, whatever comes after."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.benchmark = before


def num_compiled_graphs() -> int:
    """Return how many graphs torch has compiled in this process; none, where it is told not to (by environment)."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
