"""OpenVINO itself: what this CPU can do, compiling a stored network for one static shape, running it, saying what ran.

Arrays in, arrays out; torch is not imported here. How networks get stored is in `openvino_convert.py`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy

from vega_diffusion.inference.backends.faults import BackendFault, Fault, Route
from vega_diffusion.inference.backends.protocol import MAX_ROWS, Precision

Array = numpy.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

# The layers that a network's time goes into, in the words of OpenVINO's executed graph.
_HEAVY_LAYERS = ("Convolution", "FullyConnected", "MatMul", "ScaledDotProductAttention")
_INT8 = ("i8", "u8")
_CONVERTER = "openvino.tools.ovc"


@dataclass(frozen=True)
class CpuFeatures:
    """Instructions that decide which precisions pay.

    Attributes:
        bf16: Products of bf16 numbers (avx512_bf16, amx_bf16, or ARM's).
        vnni: Products of 8-bit numbers without the saturation of the older ones (avx512_vnni, avx_vnni, amx_int8).
    """

    bf16: bool
    vnni: bool


def require_openvino(precision: Precision = "fp32") -> Any:
    """Return the module `openvino`.

    Raises:
        BackendFault: It is not installed.
    """
    if find_spec("openvino") is None:
        raise BackendFault(
            Fault.NOT_INSTALLED,
            Route("openvino", precision),
            "allowed: an installed backend; pip install 'vega-diffusion[openvino]' or use backend torch",
        )
    import openvino

    return openvino


def import_without_converter() -> None:
    """Import `openvino` as it is where its converter is not installed, which takes as long to import as all the rest.

    For programs that draw from what is kept: `openvino.convert_model` is missing afterwards, unless `openvino` had been
    imported before; `openvino.tools.ovc` has it, which is imported at need.
    """
    if "openvino" in sys.modules or _CONVERTER in sys.modules:
        return
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # how Python is told that a module is not there
    try:
        require_openvino()
    finally:
        del sys.modules[_CONVERTER]


@cache
def openvino_core() -> Any:
    """Return the process's one `openvino.Core`."""
    return require_openvino().Core()


@cache
def cpu_features() -> CpuFeatures:
    """Return what this CPU can do: bf16 by OpenVINO's word, VNNI by the system's."""
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    return CpuFeatures("BF16" in capabilities, bool(words & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}))


@dataclass(frozen=True)
class RunSettings:
    """How compiled networks run.

    Attributes:
        precision: The numbers of the whole; `int8` and `int8-weights` lie in the stored network itself, and what is
            not 8-bit there runs in bf16 where the CPU has it.
        num_threads: CPU threads, 1 or more; 0 leaves the number to OpenVINO.
        features: Of the CPU.
        num_streams: How many evaluations run at the same time, the threads shared between them.
        max_rows: Most rows of one evaluation, a power of two: each holds inner states of its own.
    """

    precision: Precision
    num_threads: int
    features: CpuFeatures
    num_streams: int = 1
    max_rows: int = MAX_ROWS

    @property
    def hint(self) -> str:
        """OpenVINO's precision for what is not 8-bit."""
        wide = self.precision == "fp32" or not self.features.bf16
        return "f32" if wide else "bf16"

    def properties(self) -> dict[str, Any]:
        """Return the properties to compile and to import with."""
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": self.num_streams,
            "INFERENCE_NUM_THREADS": self.num_threads,
            "INFERENCE_PRECISION_HINT": self.hint,
            # A blob without weights reads them from the network's own file: a few MB a shape, however large the model.
            "CACHE_MODE": "OPTIMIZE_SIZE",
            # Streams that are tied to cores wait where two processes are tied to the same ones.
            **({"ENABLE_CPU_PINNING": False} if self.num_streams > 1 else {}),
        }


class CompiledNetwork:
    """One network, compiled for one static shape; safe to call from several threads, one at a time.

    Args:
        compiled: OpenVINO's.
        layers: What `layer_precisions` told when it was compiled, where that is known: to be told takes as long
            as a few evaluations of a mini U-Net.
    """

    def __init__(self, compiled: Any, layers: Mapping[str, int] | None = None) -> None:
        self._compiled, self._layers = compiled, layers
        self._requests = [compiled.create_infer_request() for _ in range(self.num_streams)]
        self._inputs = [set(port.get_names()) for port in compiled.inputs]
        self._lock = Lock()

    def run(self, *questions: Mapping[str, Array]) -> list[list[Array]]:
        """Return copies of the outputs of each question, in their order; as many run at a time as there are streams.

        Args:
            questions: Inputs by name, in the compiled shapes; names that the network does not have are ignored.
        """
        given = [self._given(inputs) for inputs in questions]
        found: list[list[Array]] = []
        with self._lock:
            while len(found) < len(given):
                running = list(zip(self._requests, given[len(found) :], strict=False))
                found += _answers(running)
        return found

    def _given(self, inputs: Mapping[str, Array]) -> dict[int, Array]:
        return {
            index: next(numpy.ascontiguousarray(inputs[name]) for name in inputs if name in names)
            for index, names in enumerate(self._inputs)
        }

    @property
    def num_streams(self) -> int:
        """How many evaluations run at the same time, as OpenVINO says."""
        return int(self._compiled.get_property("NUM_STREAMS"))

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it runs, as OpenVINO says."""
        return tuple(self._compiled.get_property("EXECUTION_DEVICES"))

    @property
    def num_threads(self) -> int:
        """How many threads it takes, as OpenVINO says."""
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    @cached_property
    def layer_precisions(self) -> Counter[str]:
        """Return how many of the heavy layers run in which numbers (`f32`, `bf16`, `i8`, `u8`), as OpenVINO says."""
        if self._layers is not None:
            return Counter(self._layers)
        found: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            told = node.get_rt_info()
            if told["layerType"].astype(str) in _HEAVY_LAYERS:
                found[told["runtimePrecision"].astype(str)] += 1
        return found

    def int8_share(self) -> float:
        """Return the share of heavy layers that multiply 8-bit numbers, 0 to 1."""
        layers = self.layer_precisions
        return sum(layers[name] for name in _INT8) / max(1, layers.total())

    def exported(self) -> bytes:
        """Return the compiled network as a blob."""
        return self._compiled.export_model().getvalue()


def _answers(running: list[tuple[Any, dict[int, Array]]]) -> list[list[Array]]:
    """Return copies of the outputs of requests, each with its inputs, that run at the same time."""
    started: list[Any] = []
    try:
        for request, inputs in running:
            request.start_async(inputs, share_inputs=True)
            started.append(request)
    finally:  # none is left running with arrays that nobody holds
        for request in started:
            request.wait()
    return [[numpy.array(port.data) for port in request.output_tensors] for request in started]


def compile_network(path: Path, shapes: Shapes, settings: RunSettings) -> CompiledNetwork:
    """Read a stored network and compile it for static shapes.

    Args:
        path: Its `.xml` file.
        shapes: By name of input; names that it does not have are ignored.
        settings: How it will run.
    """
    core = openvino_core()
    model = core.read_model(path)
    model.reshape(own_shapes(model, shapes))
    return CompiledNetwork(core.compile_model(model, "CPU", settings.properties()))


def import_network(blob: Path, network: Path, settings: RunSettings, layers: Mapping[str, int]) -> CompiledNetwork:
    """Read a blob.

    Args:
        blob: Of a network compiled for a shape.
        network: The `.xml` file that it was compiled from, whose weights it shares.
        settings: As it was compiled with.
        layers: Its `layer_precisions`.

    Raises:
        RuntimeError: OpenVINO refuses it.
    """
    properties = settings.properties() | {"WEIGHTS_PATH": str(network.with_suffix(".bin"))}
    return CompiledNetwork(openvino_core().import_model(BytesIO(blob.read_bytes()), "CPU", properties), layers)


def own_shapes(model: Any, shapes: Shapes) -> dict[int, list[int]]:
    """Return the shapes of a model's inputs by index."""
    return {
        index: next(list(shapes[name]) for name in shapes if name in port.get_names())
        for index, port in enumerate(model.inputs)
    }


class LoweredNetwork:
    """What runs a network at present, by shape: a small cache of compiled networks, least recently used goes first."""

    def __init__(self, compile_for: Callable[[Shapes], CompiledNetwork], max_shapes: int) -> None:
        self._compile_for, self._max_shapes = compile_for, max_shapes
        self._compiled: dict[tuple[Any, ...], CompiledNetwork] = {}
        self._making: dict[tuple[Any, ...], Lock] = {}
        self._lock = Lock()

    def get(self, shapes: Shapes) -> CompiledNetwork:
        """Return the network compiled for shapes, compiling it if need be."""
        key = tuple(sorted(shapes.items()))
        with self._lock:
            own = self._making.setdefault(key, Lock())
        with own:  # others may run what is compiled meanwhile
            with self._lock:
                found = self._compiled.pop(key, None)
            found = found or self._compile_for(shapes)
            with self._lock:
                self._compiled[key] = found
                if len(self._compiled) > self._max_shapes:
                    self._compiled.pop(next(iter(self._compiled)))
        return found

    def __iter__(self) -> Any:
        return iter(tuple(self._compiled.values()))

    def clear(self) -> None:
        """Drop what is compiled."""
        with self._lock:
            self._compiled.clear()
