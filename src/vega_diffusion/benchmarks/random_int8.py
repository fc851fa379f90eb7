"""How int8 of random weights is made: nothing is measured, and a calibrated model says which layers stay out.

Random weights err everywhere, so that the rule of `vega calibrate` would keep nearly all of them in wide numbers.
Speed and memory are those of a model of that shape whose layers leave int8 as those of the calibrated model do.
"""

from __future__ import annotations

import json

from vega_diffusion.inference.backends.quantise_rule import QuantisationRule

CALIBRATION = 2  # random weights have no quality that more samples could save


def random_rule(left_out: tuple[str, ...] = ()) -> QuantisationRule:
    """Return the rule for random weights: every layer in int8 but those that are named."""
    return QuantisationRule(num_samples=CALIBRATION, num_probes=0, left_out=left_out)


def layers_left_out(model: str) -> tuple[str, ...]:
    """Return which layers of a model's U-Net `vega calibrate` left out of int8 on this machine.

    Args:
        model: A name or a diffusers folder.

    Raises:
        BackendFault: It was not calibrated here, or OpenVINO is not installed.
        VegaError: There is no such model.
    """
    from vega_diffusion.inference.backends.open import Opening, Weights, open_networks
    from vega_diffusion.inference.components import Components

    digest = Components.open(model, "cpu", "float32", None).digest
    kept = open_networks("unet", "int8", Weights(digest, None), Opening(may_fall_back=False))
    told = json.loads((kept.folder / "full.json").read_text())
    return tuple(layer for group in told["kept_in_higher_precision"] for layer in group["layers"])
