"""How int8 is made: which layers multiply 8 bits, which stay out, and by which errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from tiny_backends import TINY_RULE, ask, reopen
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends import openvino_quantise, openvino_runtime
from vega_diffusion.inference.backends.calibration import as_samples
from vega_diffusion.inference.backends.faults import Route
from vega_diffusion.inference.backends.open import Opening, Weights, open_denoiser
from vega_diffusion.inference.backends.openvino_runtime import cpu_features
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.inference.backends.sensitivity import measure_groups

pytest.importorskip("openvino")
pytest.importorskip("nncf")
Converted = tuple[Path, Any]


def test_convolutions_multiply_eight_bits_where_the_rule_lets_them(quantised: Converted) -> None:
    home, _ = quantised
    (report,) = (json.loads(path.read_text()) for path in home.glob("unet-*/full.json"))
    in_int8 = [layer for group in report["quantised"] for layer in group["layers"]]
    kept = [layer for group in report["kept_in_higher_precision"] for layer in group["layers"]]
    assert any("conv" in layer for layer in in_int8)
    assert kept, "the tiny rule leaves some out"
    assert not set(kept) & set(in_int8)
    assert sum(group["work"] for group in report["kept_in_higher_precision"]) <= TINY_RULE.max_kept_work
    groups = report["quantised"] + report["kept_in_higher_precision"]
    assert sum(group["work"] for group in groups) == pytest.approx(1)
    assert all(group["error"] >= 0 for group in groups)


def stored_weights(home: Path, layers: list[str]) -> dict[str, str]:
    """Return the type of the numbers in which the int8 network stores the weights of layers, by their names."""
    (file,) = (path.parent / "full.xml" for path in home.glob("unet-*/full.json"))
    found = {}
    for node in openvino_runtime.openvino_core().read_model(file).get_ops():
        if node.get_friendly_name() in layers:
            source = node.input_value(1).get_node()
            while source.get_type_name() != "Constant":
                source = source.input_value(0).get_node()
            found[node.get_friendly_name()] = source.get_element_type().to_string()
    return found


def test_matrices_that_stay_out_have_weights_of_eight_bits(quantised: Converted) -> None:
    home, _ = quantised
    (report,) = (json.loads(path.read_text()) for path in home.glob("unet-*/full.json"))
    kept = [layer for group in report["kept_in_higher_precision"] for layer in group["layers"]]
    stored = stored_weights(home, kept)
    matrices = {layer: kind for layer, kind in stored.items() if "linear" in layer or "MatMul" in layer}
    assert matrices, "the tiny rule leaves some out"
    assert set(matrices.values()) == {"u8"}
    assert {stored[layer] for layer in set(stored) - set(matrices)} <= {"f32"}, "kernels stay as they are"


def test_layers_are_left_out_by_name(converted: Converted, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    unet, questions = converted[1], [ask(converted[1], 1)]
    weights, opening = Weights("smallest", lambda: unet), Opening(home=tmp_path, keep_blobs=False)
    named = "__module.unet.conv_in/aten::_convolution/Convolution"
    rule = QuantisationRule(num_samples=1, num_probes=0, left_out=(named,))
    open_denoiser(Route("openvino", "int8"), weights, replace(opening, rule=rule), questions=lambda: questions).close()
    other = "__module.unet.conv_out/aten::_convolution/Convolution"
    assert stored_weights(tmp_path, [named, other]) == {named: "f32", other: "i8"}
    wrong = replace(opening, rule=replace(rule, left_out=("conv_of_another",)))
    with pytest.raises(InvalidValue, match=r"quantisation\.left_out: 'conv_of_another' is not allowed"):
        open_denoiser(Route("openvino", "int8"), weights, wrong, questions=lambda: questions)


@pytest.mark.slow
def test_errors_are_those_of_the_guided_prediction(converted: Converted) -> None:
    """At scale 1 that is the prompt's own row; at higher ones, what guidance multiplies counts for more."""
    home, unet = converted
    wide: Any = reopen(home, "fp32")
    file = wide._networks._graphs.folder / "full.xml"
    core, both = openvino_runtime.openvino_core(), ask(unet, 2)
    samples: Any = {rows: as_samples([both.rows(*rows)]) for rows in ((0, 2), (1, 2))}

    def errors(rows: tuple[int, int], guidance: float) -> numpy.ndarray[Any, Any]:
        model = core.read_model(file)
        trial = openvino_quantise._post_training(
            model, samples[(0, 2)], TINY_RULE, cpu_features(), (), correct_bias=False
        )
        return numpy.array([group.error for group in measure_groups(model, trial, samples[rows], guidance)])

    alone = errors((1, 2), 5.0)
    numpy.testing.assert_allclose(errors((0, 2), 1.0), alone, rtol=0.1, atol=1e-7)
    assert errors((0, 2), 5.0).sum() > 1.2 * alone.sum()
