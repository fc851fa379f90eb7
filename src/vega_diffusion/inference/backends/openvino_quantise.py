"""8-bit networks by NNCF: weights alone, or weights and activations with the worst layers left out by a rule.

The rule is `quantise_rule.py`; how bad a layer is comes from `sensitivity.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.openvino_convert import quiet_tools
from vega_diffusion.inference.backends.openvino_runtime import Array, CpuFeatures
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule, kept_groups
from vega_diffusion.inference.backends.sensitivity import measure_groups

Sample = Mapping[str, Array]


def compress(model: Any) -> Any:
    """Return a network whose matrices are 8-bit numbers with a scale a channel; it computes as before.

    The small-memory choice where nobody calibrated. Kernels of convolutions stay as they are: OpenVINO multiplies with
    packed matrices, but would widen kernels when it compiles, hold them twice and put them into every blob.
    """
    with quiet_tools():
        nncf = _nncf()
        wide = nncf.IgnoredScope(types=["Convolution"], validate=False)
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=wide)


def quantise(model: Any, samples: Sequence[Sample], rule: QuantisationRule, features: CpuFeatures, report: Path) -> Any:
    """Return a network that multiplies 8-bit numbers, convolutions included, except where the rule says otherwise.

    Matrices that stay out have weights of 8 bits, which costs the prediction next to nothing (docs/log.md) and memory
    a quarter of theirs.

    Args:
        model: A converted U-Net (or decoder); it is not changed.
        samples: Inputs by name from the model's own runs, over all timesteps.
        rule: How many of them count, and which layers stay out.
        features: Without VNNI, 8-bit products are added in 16 bits and saturate, so weights get 7 bits.
        report: Written: which groups of layers stayed out, and every group's error and work.

    Raises:
        InvalidValue: The rule leaves out a layer that is not there.
    """
    missing = set(rule.left_out) - {node.get_friendly_name() for node in model.get_ops()}
    if missing:
        allowed = "names of layers of this network"
        raise InvalidValue("quantisation.left_out", min(missing), allowed, "take them from a network of its topology")
    samples = _spread(samples, rule.num_samples)
    groups = []
    if rule.num_probes:
        trial = _post_training(model, samples, rule, features, (), correct_bias=False)
        groups = measure_groups(model, trial, _spread(samples, rule.num_probes), rule.guidance)
        del trial
    kept = kept_groups(groups, rule)
    left_out = sorted({*rule.left_out, *(layer for group in kept for layer in group.layers)})
    told = {
        "rule": rule.as_identity(),
        "kept_in_higher_precision": [{"layers": g.layers, "work": g.work, "error": g.error} for g in kept],
        "quantised": [{"layers": g.layers, "work": g.work, "error": g.error} for g in groups if g not in kept],
    }
    report.write_text(json.dumps(told, indent=1))
    return compress(_post_training(model, samples, rule, features, left_out, correct_bias=True))


def _post_training(
    model: Any,
    samples: Sequence[Sample],
    rule: QuantisationRule,
    features: CpuFeatures,
    left_out: Sequence[str],
    correct_bias: bool,
) -> Any:
    with quiet_tools():
        nncf = _nncf()
        alphas = nncf.AdvancedSmoothQuantParameters(matmul=rule.smooth, convolution=-1)
        overflow = nncf.OverflowFix.DISABLE if features.vnni else nncf.OverflowFix.ENABLE
        return nncf.quantize(
            model,
            nncf.Dataset([dict(sample) for sample in samples]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=list(left_out)) if left_out else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=overflow, smooth_quant_alphas=alphas, disable_bias_correction=not correct_bias
            ),
        )


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return at most `count` samples at equal distances."""
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _nncf() -> Any:
    """Return the module `nncf`, silent; it is imported inside `quiet_tools` for the sake of its telemetry."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf
