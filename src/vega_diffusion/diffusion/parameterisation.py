"""What a denoiser predicts (epsilon, v, x0) and the way from one to another.

What lives here: training targets and conversions. What does not: the loss weight that belongs to each (weighting.py).
The names are diffusers' `prediction_type`s: "epsilon", "v_prediction", "sample".
"""

from __future__ import annotations

from typing import Literal, assert_never

from torch import Tensor

from vega_diffusion.diffusion.schedule import NoiseSchedule

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def training_target(
    prediction_type: PredictionType, schedule: NoiseSchedule, x0: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Return what the network should predict: noise, v = sqrt(a_t) noise - sqrt(1 - a_t) x0, or x0.

    Args:
        prediction_type: Which of the three.
        schedule: The noise schedule.
        x0: Clean latents `[B, ...]`.
        noise: The noise added to them, same shape.
        timesteps: Int64 `[B]`.

    Source: v: Salimans and Ho 2022, appendix D (arXiv 2202.00512).
    """
    match prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            signal, sigma = schedule.coefficients(timesteps, like=x0)
            return signal * noise - sigma * x0
        case "sample":
            return x0
        case _:
            assert_never(prediction_type)


def convert(
    prediction: Tensor,
    given: PredictionType,
    wanted: PredictionType,
    schedule: NoiseSchedule,
    x_t: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Return a prediction in another parameterisation.

    Between epsilon and v nothing is divided by a small number where it need not be: v = (epsilon - sigma x_t) / signal,
    epsilon = signal v + sigma x_t. Where the SNR is 0, an epsilon prediction implies neither v nor x0.

    Source: Salimans and Ho 2022, appendix D (arXiv 2202.00512).
    """
    if given == wanted:
        return prediction
    signal, sigma = schedule.coefficients(timesteps, like=x_t)
    match wanted:
        case "epsilon":
            return to_epsilon(given, schedule, prediction, x_t, timesteps)
        case "sample":
            return to_x0(given, schedule, prediction, x_t, timesteps)
        case "v_prediction":
            if given == "epsilon":
                return (prediction - sigma * x_t) / signal
            return (signal * x_t - prediction) / sigma
        case _:
            assert_never(wanted)


def to_x0(
    prediction_type: PredictionType, schedule: NoiseSchedule, prediction: Tensor, x_t: Tensor, timesteps: Tensor
) -> Tensor:
    """Return the clean latents that a prediction implies.

    An epsilon prediction says nothing about x0 where the SNR is 0: that division gives inf or nan there.
    """
    signal, sigma = schedule.coefficients(timesteps, like=x_t)
    match prediction_type:
        case "epsilon":
            return (x_t - sigma * prediction) / signal
        case "v_prediction":
            return signal * x_t - sigma * prediction
        case "sample":
            return prediction
        case _:
            assert_never(prediction_type)


def to_epsilon(
    prediction_type: PredictionType, schedule: NoiseSchedule, prediction: Tensor, x_t: Tensor, timesteps: Tensor
) -> Tensor:
    """Return the noise that a prediction implies; defined at every t with 1 - a_t > 0."""
    signal, sigma = schedule.coefficients(timesteps, like=x_t)
    match prediction_type:
        case "epsilon":
            return prediction
        case "v_prediction":
            return signal * prediction + sigma * x_t
        case "sample":
            return (x_t - signal * prediction) / sigma
        case _:
            assert_never(prediction_type)
