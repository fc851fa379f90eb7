"""The converted networks of one part of a model: made once, kept on disk, compiled for each shape at first use.

On disk are two kinds of entries (`store.py`): the networks themselves, keyed by the digest of the weights, precision,
quantisation rule and versions; and compiled blobs, keyed by all that and the shape, threads and CPU. Arrays in, arrays
out; torch comes in only where something must be made.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy

from vega_diffusion.inference.backends.faults import WAYS_OUT, BackendFault, Fault, Route
from vega_diffusion.inference.backends.openvino_runtime import (
    Array,
    CompiledNetwork,
    LoweredNetwork,
    RunSettings,
    Shapes,
    compile_network,
    import_network,
)
from vega_diffusion.inference.backends.protocol import Precision
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.inference.backends.store import Identity, Store

FORMAT = 1
BLOB, LAYERS, BLOB_FORMAT = "compiled.blob", "layers.json", 3  # 2: without weights; 3: with what its layers run in
_NO_NNCF = "none"
Samples = Callable[[], list[dict[str, Array]]]


@dataclass(frozen=True)
class Part:
    """What is to be converted.

    Attributes:
        what: `unet`, `vae-decoder`, `tiny-vae-decoder`, `text-encoder` or `text-encoder-2`; begins the names on disk.
        digest: Of the weights, LoRAs included: the same digest must mean the same numbers.
        graphs: Names of its networks; the first is the one that int8 quantises.
        make: Returns an `Exportable` a graph, reading weights if need be. None: use what is kept, or fail.
        release: Called when the torch weights are not needed any more.
        samples: Inputs of the first graph for calibration, in the order to take them in; needed for int8.
        detail: What else the graphs depend on, as texts and numbers.
    """

    what: str
    digest: str
    graphs: tuple[str, ...]
    make: Callable[[], Mapping[str, Any]] | None = None
    release: Callable[[], None] = lambda: None
    samples: Samples | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


class Graphs:
    """The networks of one part in one precision, ready to run."""

    def __init__(
        self,
        part: Part,
        settings: RunSettings,
        store: Store,
        rule: QuantisationRule,
        max_shapes: int = 4,
        keep_blobs: bool = True,
    ) -> None:
        """Find the networks on disk, or convert, quantise and store them.

        Args:
            part: What to convert.
            settings: Precision and threads.
            store: Where entries lie; told lines go through it.
            rule: For int8.
            max_shapes: How many shapes of each graph stay compiled.
            keep_blobs: Whether compiled networks are stored, too (without weights, once a shape).

        Raises:
            BackendFault: Something that the precision needs is missing.
        """
        self._part, self._store, self._rule = part, store, rule
        self.settings = settings
        self._keep_blobs = keep_blobs
        self.identity = identity_in(store, part, settings, rule)
        self.folder = store.find(self.identity) or self._make()
        self._lowered = {name: LoweredNetwork(partial(self._lower, name), max_shapes) for name in part.graphs}

    def run(self, graph: str, *questions: Mapping[str, Array]) -> list[list[Array]]:
        """Return the outputs of a graph for questions of one shape, compiling it for that at its first use."""
        return self.network(graph, {name: array.shape for name, array in questions[0].items()}).run(*questions)

    def network(self, graph: str, shapes: Shapes) -> CompiledNetwork:
        """Return a graph compiled for shapes."""
        return self._lowered[graph].get(shapes)

    @property
    def what(self) -> str:
        """Which part of a model this is."""
        return self._part.what

    def precision_in_use(self) -> Precision:
        """Return what the heavy layers of the first graph run in; before it is compiled, what they should run in."""
        for network in self._lowered[self._part.graphs[0]]:
            if network.int8_share() > 0:
                # OpenVINO tells matrices stored in 8 bits and products of 8-bit numbers apart by the network alone
                return "int8-weights" if self.settings.precision == "int8-weights" else "int8"
            return "bf16" if network.layer_precisions["bf16"] else "fp32"
        return self.settings.precision

    def compiled(self) -> tuple[CompiledNetwork, ...]:
        """Return what is compiled now, of all graphs."""
        return tuple(network for lowered in self._lowered.values() for network in lowered)

    def close(self) -> None:
        """Drop what is compiled."""
        for lowered in self._lowered.values():
            lowered.clear()

    def _make(self) -> Path:
        part, route = self._part, Route("openvino", self.settings.precision)
        if part.make is None:
            raise BackendFault(
                Fault.NO_WEIGHTS,
                route,
                f"allowed: a conversion kept in {self._store.home}; give weights of {part.what}",
            )
        if route.precision == "int8" and part.samples is None:
            raise BackendFault(
                Fault.NO_SAMPLES,
                route,
                "allowed: int8 with questions of the model's own runs; record some and give them",
            )
        if route.precision in ("int8", "int8-weights"):
            _require_nncf(route)
        others = [path for path in self._store.home.glob(f"{part.what}-*") if path.is_dir()]
        reason = f" ({Fault.OTHER_IDENTITY.value})" if others else ""
        self._store.say(f"openvino: converting {part.what} to {route.precision}, once for these weights{reason}")
        folder = self._store.make(self.identity, self._write)
        part.release()
        gc.collect()
        return folder

    def _write(self, folder: Path) -> None:
        """Convert all graphs into a folder."""
        from vega_diffusion.inference.backends.openvino_convert import convert
        from vega_diffusion.inference.backends.openvino_quantise import compress, quantise

        part, precision = self._part, self.settings.precision
        assert part.make is not None, "checked by the caller"
        for index, (name, exportable) in enumerate(part.make().items()):
            model = convert(exportable)
            if precision == "int8-weights":
                model = compress(model)
            elif precision == "int8" and index == 0:
                assert part.samples is not None, "checked by the caller"
                model = quantise(model, part.samples(), self._rule, self.settings.features, folder / f"{name}.json")
            _save(model, folder / f"{name}.xml", small=precision == "bf16")

    def _lower(self, graph: str, shapes: Shapes) -> CompiledNetwork:
        """Import the blob of a graph for shapes, or compile it and store the blob."""
        identity = self._blob_identity(graph, shapes)
        kept = self._store.find(identity) if self._keep_blobs else None
        if kept is not None:
            try:
                layers = json.loads((kept / LAYERS).read_text())
                return import_network(kept / BLOB, self.folder / f"{graph}.xml", self.settings, layers)
            except RuntimeError:
                # hashes agree, so OpenVINO finds it foreign: another driver, another kind of CPU
                self._store.say(f"{kept}: {Fault.OTHER_IDENTITY.value}; {WAYS_OUT[Fault.OTHER_IDENTITY].line}")
                self._store.remove(identity)
        network = compile_network(self.folder / f"{graph}.xml", shapes, self.settings)
        wanted, layers = self.settings.precision, network.layer_precisions
        if (wanted == "bf16" and not layers["bf16"]) or (
            wanted == "int8" and graph == self._part.graphs[0] and not network.int8_share()
        ):
            self._store.say(f"{self.what}: openvino runs no layer in {wanted} on this CPU, but {dict(layers)}")
        if self._keep_blobs:
            self._store.make(identity, partial(_write_blob, network))
        return network

    def _blob_identity(self, graph: str, shapes: Shapes) -> dict[str, Any]:
        features = self.settings.features
        return {
            "what": f"blob-{self._part.what}-{graph}",
            "format": BLOB_FORMAT,
            "networks": self.folder.name,
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "threads": self.settings.num_threads,
            "hint": self.settings.hint,
            "cpu": [features.bf16, features.vnni],
            **({"streams": self.settings.num_streams} if self.settings.num_streams > 1 else {}),
        }


def identify(part: Part, settings: RunSettings, rule: QuantisationRule) -> dict[str, Any]:
    """Return all that stored networks depend on."""
    precision = settings.precision
    identity: dict[str, Any] = {
        "what": part.what,
        "format": FORMAT,
        "weights": part.digest,
        "precision": precision,
        "detail": dict(part.detail),
        "openvino": version("openvino"),
    }
    if precision in ("int8", "int8-weights"):
        identity["nncf"] = _nncf_version()
        identity["compressed"] = "matrices"
    if precision == "int8":
        # without VNNI the weights have 7 bits (`openvino_quantise.py`)
        identity["rule"] = rule.as_identity() | {"vnni": settings.features.vnni}
    return identity


def identity_in(store: Store, part: Part, settings: RunSettings, rule: QuantisationRule) -> Identity:
    """Return what names a part's networks in a store: without NNCF, whichever version of it made those that are there.

    What is kept needs none to run.
    """
    identity = identify(part, settings, rule)
    if identity.get("nncf") == _NO_NNCF:
        return store.like(identity, "nncf") or identity
    return identity


def _nncf_version() -> str:
    """Return the version of NNCF; its absence is no error here."""
    try:
        return version("nncf")
    except PackageNotFoundError:
        return _NO_NNCF


def _require_nncf(route: Route) -> None:
    if _nncf_version() == _NO_NNCF:
        raise BackendFault(
            Fault.NO_QUANTISER, route, "allowed: int8 with nncf; pip install 'vega-diffusion[openvino]' or use fp32"
        )


def _save(model: Any, path: Path, small: bool) -> None:
    """Write a network; `small` stores its weights in fp16, which is finer than the bf16 they are used in."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=small)


def _write_blob(network: CompiledNetwork, folder: Path) -> None:
    (folder / BLOB).write_bytes(network.exported())
    (folder / LAYERS).write_text(json.dumps(network.layer_precisions))


def as_array(tensor: Any) -> Array:
    """Return a tensor's numbers in float32, or its whole numbers in int64, as an array that may share its memory."""
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy().astype(numpy.int64)
