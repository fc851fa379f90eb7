"""A U-Net in OpenVINO, and decoders and text encoders beside it: tensors in, tensors out, arrays between.

What the networks are and where they lie is `openvino_graphs.py`'s matter; this file speaks the protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy

from vega_diffusion.inference.backends.faults import BackendFault, Fault, NotFinite, Route, Say, next_route
from vega_diffusion.inference.backends.openvino_graphs import Graphs, as_array
from vega_diffusion.inference.backends.openvino_runtime import Array, Shapes
from vega_diffusion.inference.backends.protocol import MAX_ROWS, InUse, Precision, Question

if TYPE_CHECKING:
    from torch import Tensor

OpenGraphs = Callable[[Precision], Graphs]


def batches(rows: int, num_streams: int = 1, max_rows: int = MAX_ROWS) -> list[int]:
    """Return the powers of two in which rows are evaluated: few networks serve every number of rows.

    Args:
        rows: How many.
        num_streams: How many evaluations run at the same time: none is larger than its share.
        max_rows: Most rows of one evaluation, a power of two.
    """
    largest = min(max_rows, 2 ** (max(1, rows // num_streams).bit_length() - 1))
    sizes, rest = [largest] * (rows // largest), rows % largest
    return sizes + [2**power for power in reversed(range(largest.bit_length())) if rest & 2**power]


class Networks(Protocol):
    """The networks of a U-Net: arrays in, arrays out."""

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        ...

    def run(self, graph: str, inputs: dict[str, Array]) -> list[Array]:
        """Return the outputs of a graph for rows."""
        ...

    def prepare(self, graph: str, shapes: Shapes) -> None:
        """Have a graph compiled for shapes before it is asked."""
        ...

    def close(self) -> None:
        """Drop what is compiled."""
        ...


class Guarded:
    """Networks that are opened again in wider numbers when they give values that are not finite from finite ones."""

    def __init__(self, open_graphs: OpenGraphs, precision: Precision, say: Say) -> None:
        """Open the networks.

        Args:
            open_graphs: Opens them in a precision, falling back where the precision itself is not possible.
            precision: The one to begin with.
            say: Gets one line when the precision changes.
        """
        self._open, self._say = open_graphs, say
        self._graphs = open_graphs(precision)

    @property
    def in_use(self) -> InUse:
        """What really runs, told by the compiled networks; before the first call, what they will be made from."""
        compiled = self._graphs.compiled()
        precision = self._graphs.precision_in_use()
        return InUse("openvino", precision, bool(compiled), compiled[0].devices if compiled else ("CPU",))

    @property
    def folder(self) -> Path:
        """Where the networks are kept."""
        return self._graphs.folder

    def run(self, graph: str, inputs: dict[str, Array]) -> list[Array]:
        """Return the outputs of a graph for rows, which are evaluated in `batches`.

        Raises:
            NotFinite: They are not finite even in float32, though the inputs are.
        """
        found: list[list[Array]] = []
        for _, rows in groupby(self._slices(len(next(iter(inputs.values())))), key=lambda rows: rows.stop - rows.start):
            found += self._run(graph, [{name: array[each] for name, array in inputs.items()} for each in rows])
        return found[0] if len(found) == 1 else [numpy.concatenate(parts) for parts in zip(*found, strict=True)]

    def _slices(self, rows: int) -> list[slice]:
        ends = list(accumulate(self._batches(rows), initial=0))
        return [slice(start, stop) for start, stop in pairwise(ends)]

    def _batches(self, rows: int) -> list[int]:
        settings = self._graphs.settings
        return batches(rows, settings.num_streams, settings.max_rows)

    def _run(self, graph: str, questions: list[dict[str, Array]]) -> list[list[Array]]:
        """Return the outputs of questions of one shape."""
        while True:
            graphs = self._graphs
            found = graphs.run(graph, *questions)
            if _all_finite(output for outputs in found for output in outputs):
                return found
            if not _all_finite(array for question in questions for array in question.values()):
                return found  # garbage in: whoever made it will say so
            self._widen(graphs)

    def prepare(self, graph: str, shapes: Shapes) -> None:
        """Have a graph compiled for shapes before it is asked."""
        for size in dict.fromkeys(self._batches(next(iter(shapes.values()))[0])):
            self._graphs.network(graph, {name: (size, *shape[1:]) for name, shape in shapes.items()})

    def close(self) -> None:
        """Drop what is compiled."""
        self._graphs.close()

    def _widen(self, graphs: Graphs) -> None:
        route = Route("openvino", graphs.settings.precision)
        wider = next_route(BackendFault(Fault.NOT_FINITE, route, ""))
        if wider is None:
            raise NotFinite(
                f"{graphs.what}: {Fault.NOT_FINITE.value} in {route}; allowed: finite weights; fetch them again"
            )
        opened = self._open(wider.precision)
        if opened.settings.precision == route.precision:
            raise NotFinite(
                f"{graphs.what}: {Fault.NOT_FINITE.value} in {route}; allowed: finite numbers; use backend torch"
            )
        self._say(f"{graphs.what}: {Fault.NOT_FINITE.value} in {route}; going on in {opened.settings.precision}")
        graphs.close()
        self._graphs = opened


class WideFrom:
    """A U-Net's networks twice: wide ones answer rows at the noisiest timesteps, narrow ones all others."""

    def __init__(self, narrow: Networks, wide: Networks, timestep: float) -> None:
        """Join two.

        Args:
            narrow: Answers below the timestep; says what is in use.
            wide: Answers at it and above.
            timestep: 0 to 1000.
        """
        self._narrow, self._wide, self._timestep = narrow, wide, timestep

    @property
    def in_use(self) -> InUse:
        """What really runs below the timestep."""
        return self._narrow.in_use

    def run(self, graph: str, inputs: dict[str, Array]) -> list[Array]:
        """Return the outputs of a graph, each row from the networks of its timestep."""
        is_wide = inputs["timesteps"] >= self._timestep
        if is_wide.all() or not is_wide.any():
            return (self._wide if is_wide.all() else self._narrow).run(graph, inputs)
        found = [
            networks.run(graph, {name: array[chosen] for name, array in inputs.items()})
            for networks, chosen in ((self._wide, is_wide), (self._narrow, ~is_wide))
        ]
        order = numpy.argsort(numpy.concatenate([numpy.flatnonzero(is_wide), numpy.flatnonzero(~is_wide)]))
        return [numpy.concatenate(parts)[order] for parts in zip(*found, strict=True)]

    def prepare(self, graph: str, shapes: Shapes) -> None:
        """Have a graph compiled for shapes before it is asked, wide first, as a picture asks."""
        self._wide.prepare(graph, shapes)
        self._narrow.prepare(graph, shapes)

    def close(self) -> None:
        """Drop what is compiled."""
        self._narrow.close()
        self._wide.close()


class OpenVinoDenoiser:
    """A U-Net whose whole and shallow graphs are two static networks a shape; shapes are compiled when first asked."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        return self._networks.in_use

    def predict(self, question: Question) -> Tensor:
        """Return the prediction `[N, C, h, w]`."""
        return self.full(question)[0]

    def full(self, question: Question) -> tuple[Tensor, Tensor]:
        """Return the prediction `[N, C, h, w]` and the hidden state at the cut, in float32."""
        prediction, deep = self._networks.run("full", _arrays(question))
        return _like(prediction, question.x_t), _tensor(deep)

    def shallow(self, question: Question, deep: Tensor) -> Tensor:
        """Return the prediction from the layers above the cut and `deep`."""
        (prediction,) = self._networks.run("shallow", _arrays(question) | {"deep": as_array(deep)})
        return _like(prediction, question.x_t)

    def close(self) -> None:
        """Drop what is compiled; another question opens it again."""
        self._networks.close()


class OpenVinoDecoder:
    """An autoencoder's decoder, full or tiny, as a static network a shape."""

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        return self._guarded.in_use

    def decode(self, latents: Tensor) -> Tensor:
        """Return `[N, 3, H, W]` in about -1..1 from latents `[N, C, h, w]` in the autoencoder's own scale."""
        (image,) = self._guarded.run("decoder", {"latents": as_array(latents)})
        return _like(image, latents)

    def close(self) -> None:
        """Drop what is compiled."""
        self._guarded.close()


class OpenVinoTextEncoder:
    """A CLIP text encoder as a static network a number of rows."""

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded

    @property
    def in_use(self) -> InUse:
        """What really runs."""
        return self._guarded.in_use

    def encode(self, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the penultimate hidden states `[N, L, D]` and, with a projection, the pooled output `[N, P]`."""
        hidden, *pooled = self._guarded.run("text", {"token_ids": as_array(token_ids)})
        return _tensor(hidden), _tensor(pooled[0]) if pooled else None

    def close(self) -> None:
        """Drop what is compiled."""
        self._guarded.close()


def _arrays(question: Question) -> dict[str, Array]:
    """Return a question's tensors as float32 arrays, timesteps included."""
    return {name: as_array(tensor.float()) for name, tensor in question.named().items()}


def _all_finite(arrays: Iterable[Array]) -> bool:
    return all(bool(numpy.isfinite(array).all()) for array in arrays)


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(array)


def _like(array: Array, other: Tensor) -> Tensor:
    return _tensor(array).to(other.device, other.dtype)
