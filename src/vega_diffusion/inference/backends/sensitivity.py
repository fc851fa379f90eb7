"""How much each layer's 8-bit arithmetic moves a network's output, all from one compiled network with switches.

Every quantised layer gets its unquantised twin beside it, and a switch, an input of the network, says which of the two
goes on. So one compilation serves all measurements, and what is measured is what runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from vega_diffusion.inference.backends.openvino_runtime import (
    Array,
    CompiledNetwork,
    openvino_core,
    own_shapes,
    require_openvino,
)
from vega_diffusion.inference.backends.progress import shown
from vega_diffusion.inference.backends.protocol import GUIDED_ROWS
from vega_diffusion.inference.backends.quantise_rule import Group

_SMOOTHING = "nncf_smooth_quant"


@dataclass
class _Layers:
    """Quantised layers that read the same quantised numbers."""

    nodes: list[Any] = field(default_factory=list)
    work: float = 0.0


def measure_groups(
    model: Any, quantised: Any, samples: Sequence[Mapping[str, Array]], guidance: float = 1.0
) -> list[Group]:
    """Return every group of quantised layers with its work and its squared relative error on the first output.

    Args:
        model: The network before.
        quantised: The same network quantised by NNCF without correction of biases, so that with all switches off it
            equals `model`; it is changed.
        samples: Inputs by name.
        guidance: Scale at which outputs of two rows, the negative prompt's first, are one prediction.
    """
    found = _find_layers(quantised)
    weights = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() in _TWINS}
    works = _works(quantised, samples[0])
    for layers in found.values():
        layers.work = sum(works[node.get_friendly_name()] for node in layers.nodes)
    total = sum(layers.work for layers in found.values()) or 1.0
    switched = _with_switches(quantised, list(found.values()), weights)
    errors = _errors(switched, len(found), samples, guidance)
    return [
        Group(tuple(node.get_friendly_name() for node in layers.nodes), layers.work / total, error)
        for layers, error in zip(found.values(), errors, strict=True)
    ]


def _find_layers(quantised: Any) -> dict[str, _Layers]:
    """Return quantised layers by the quantiser that feeds them, in the order of execution."""
    found: dict[str, _Layers] = {}
    for node in quantised.get_ordered_ops():
        if node.get_type_name() in _TWINS:
            source = node.input_value(0).get_node()
            if source.get_type_name() == "FakeQuantize":
                found.setdefault(source.get_friendly_name(), _Layers()).nodes.append(node)
    return found


def _with_switches(quantised: Any, groups: list[_Layers], originals: Mapping[str, Any]) -> Any:
    """Return the network with a switch a group, as its last inputs: 1 takes the quantised layers, 0 their twins."""
    from openvino import opset13 as ops

    openvino: Any = require_openvino()
    switches = []
    for index, group in enumerate(groups):
        switch = ops.parameter([1], numpy.bool_, name=f"switch_{index}")
        switch.output(0).get_tensor().set_names({f"switch_{index}"})
        switches.append(switch)
        for node in group.nodes:
            readers = list(node.output(0).get_target_inputs())
            twin = _TWINS[node.get_type_name()](ops, node, _plain_input(node), _plain_weights(node, originals))
            chosen = ops.select(switch, node.output(0), twin.output(0))
            for reader in readers:
                reader.replace_source_output(chosen.output(0))
    network = openvino.Model(quantised.get_results(), [*quantised.get_parameters(), *switches])
    network.validate_nodes_and_infer_types()
    return network


def _plain_input(node: Any) -> Any:
    """Return what the layer read before it was quantised: before the quantiser, and before SmoothQuant's scaling."""
    plain = node.input_value(0).get_node().input_value(0)
    while _SMOOTHING in plain.get_node().get_friendly_name():
        plain = plain.get_node().input_value(0)
    return plain


def _plain_weights(node: Any, originals: Mapping[str, Any]) -> Any:
    """Return the layer's weights from the network before, as a new constant."""
    from openvino import opset13 as ops

    source = originals[node.get_friendly_name()].input_value(1).get_node()
    while source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    return ops.constant(numpy.asarray(source.data, dtype=numpy.float32)).output(0)


def _convolution_twin(ops: Any, node: Any, data: Any, weights: Any) -> Any:
    told = node.get_attributes()
    return ops.convolution(
        data, weights, told["strides"], told["pads_begin"], told["pads_end"], told["dilations"], told["auto_pad"]
    )


def _product_twin(ops: Any, node: Any, data: Any, weights: Any) -> Any:
    told = node.get_attributes()
    return ops.matmul(data, weights, told["transpose_a"], told["transpose_b"])


_TWINS = {"Convolution": _convolution_twin, "MatMul": _product_twin}


def _works(network: Any, sample: Mapping[str, Array]) -> dict[str, float]:
    """Return the multiplications of every convolution and matrix product for one sample, by the layer's name."""
    static = network.clone()
    static.reshape(own_shapes(static, {name: array.shape for name, array in sample.items()}))
    works = {}
    for node in static.get_ops():
        if node.get_type_name() in _TWINS and node.input_value(1).get_partial_shape().is_static:
            made, weights = list(node.get_output_shape(0)), math.prod(node.get_input_shape(1))
            channels = made[1] if node.get_type_name() == "Convolution" else made[-1]
            works[node.get_friendly_name()] = math.prod(made) * weights / channels
    return works


def _errors(network: Any, num_groups: int, samples: Sequence[Mapping[str, Array]], guidance: float) -> list[float]:
    """Return the squared relative error of the first output with one switch on, a switch, averaged over samples."""
    off = {f"switch_{index}": numpy.array([False]) for index in range(num_groups)}
    errors = numpy.zeros(num_groups)
    compiled: dict[tuple[Any, ...], CompiledNetwork] = {}
    for sample in shown(samples, "probing layers"):
        given = {**sample, **off}
        key = tuple(array.shape for array in given.values())
        if key not in compiled:
            compiled[key] = _compiled(network, given)
        plain = _guided(compiled[key], given, guidance)
        for index in range(num_groups):
            moved = _guided(compiled[key], given | {f"switch_{index}": numpy.array([True])}, guidance)
            errors[index] += float(((moved - plain) ** 2).sum() / max((plain**2).sum(), 1e-30)) / len(samples)
    return [float(error) for error in errors]


def _guided(network: CompiledNetwork, given: Mapping[str, Array], guidance: float) -> Array:
    """Return the first output; of two rows, the negative prompt's first, what guidance makes of them."""
    ((found, *_),) = network.run(given)
    if len(found) != GUIDED_ROWS:
        return found
    against, towards = found
    return numpy.asarray(against + numpy.float32(guidance) * (towards - against))


def _compiled(network: Any, given: Mapping[str, Array]) -> CompiledNetwork:
    clone = network.clone()
    clone.reshape(own_shapes(clone, {name: array.shape for name, array in given.items()}))
    return CompiledNetwork(openvino_core().compile_model(clone, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
