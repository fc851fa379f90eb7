"""Loss weights over timesteps. What does not live here: the loss itself (objectives/)."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from vega_diffusion.diffusion.parameterisation import PredictionType


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Min-SNR-gamma weight of each sample; finite for every SNR >= 0.

    The weight on the x0 error is min(snr, gamma). An epsilon error is snr times an x0 error and a v error is snr + 1
    times one, hence min(snr, gamma) / snr and min(snr, gamma) / (snr + 1). At snr = 0 the first is its limit, 1.

    Args:
        snr: Signal-to-noise ratios, `[B]`, >= 0 (0 only with a zero-terminal-SNR schedule).
        gamma: The cap, > 0; the paper uses 5.
        prediction_type: What the network predicts.

    Returns:
        Weights, `[B]`, in the dtype of `snr`.

    Source: Hang et al. 2023, section 3.4 (arXiv 2303.09556).
    """
    capped = snr.clamp(max=gamma)
    match prediction_type:
        case "epsilon":
            return torch.where(snr > 0, capped / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))
        case "v_prediction":
            return capped / (snr + 1)
        case "sample":
            return capped
        case _:
            assert_never(prediction_type)
