"""From an objective's spec to the objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import nn

from vega_diffusion.data.scenes.targets import mention_sizes, slot_sizes
from vega_diffusion.diffusion.randomness import derive_seed
from vega_diffusion.diffusion.schedule import NoiseSchedule, linear, scaled_linear, squared_cosine
from vega_diffusion.errors import InvalidValue
from vega_diffusion.objectives.autoencoding import Autoencoding
from vega_diffusion.objectives.before import ModelBefore
from vega_diffusion.objectives.denoising import Denoising
from vega_diffusion.objectives.distillation import Distillation
from vega_diffusion.objectives.protocol import Objective
from vega_diffusion.objectives.scene_checking import SceneChecking
from vega_diffusion.objectives.scene_text import SceneHeads, SceneText
from vega_diffusion.objectives.teachers import Teacher
from vega_diffusion.objectives.tiny_autoencoding import TinyAutoencoding
from vega_diffusion.specs.architecture import ModelSpec, NoiseScheduleSpec
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.objective import (
    AutoencodingSpec,
    DenoisingSpec,
    ObjectiveSpec,
    SceneCheckingSpec,
    SceneTextSpec,
    TinyAutoencodingSpec,
)


def build_objective(
    spec: ObjectiveSpec,
    model: ModelSpec,
    frozen: dict[str, nn.Module],
    teachers: Sequence[Teacher] = (),
    batch_size: int = 1,
    before: ModelBefore | None = None,
) -> Objective:
    """Return the objective that a spec describes.

    Args:
        spec: Which loss, with its weights.
        model: The architecture that is trained (prediction type, noise schedule).
        frozen: Component -> module that helps and does not learn.
        teachers: Those that a distillation names.
        batch_size: Samples of one optimizer step, which tells a distillation what step a sample belongs to.
        before: The model before training, where it answers for some samples of a denoising task.
    """
    match spec:
        case AutoencodingSpec():
            return Autoencoding(spec)
        case TinyAutoencodingSpec():
            return TinyAutoencoding(spec, frozen)
        case DenoisingSpec():
            return build_denoising(spec, model, frozen, before)
        case DistillationSpec():
            task = build_denoising(DenoisingSpec(min_snr_gamma=spec.min_snr_gamma), model, frozen)
            return Distillation(spec, task, teachers, batch_size)
        case SceneTextSpec():
            return SceneText(spec, frozen)
        case SceneCheckingSpec():
            return SceneChecking(spec)
        case _:
            assert_never(spec)


def build_denoising(
    spec: DenoisingSpec, model: ModelSpec, frozen: dict[str, nn.Module], before: ModelBefore | None = None
) -> Denoising:
    """Return the denoising task of a model.

    Raises:
        InvalidValue: The spec's range of timesteps goes beyond the schedule's.
    """
    last, bias = model.schedule.num_train_timesteps, spec.timestep_bias
    if bias is not None and bias.end > last:
        raise InvalidValue("objective.timestep_bias.end", bias.end, f"at most {last}", "lower it")
    predicted = spec.prediction_type or model.schedule.prediction_type
    return Denoising(spec, predicted, build_schedule(model.schedule), frozen, before)


def build_schedule(spec: NoiseScheduleSpec) -> NoiseSchedule:
    """Return the noise schedule that a model's spec describes."""
    betas = {"beta_start": spec.beta_start, "beta_end": spec.beta_end}
    zero = spec.rescale_betas_zero_snr
    match spec.beta_schedule:
        case "scaled_linear":
            return scaled_linear(spec.num_train_timesteps, zero_terminal_snr=zero, **betas)
        case "linear":
            return linear(spec.num_train_timesteps, zero_terminal_snr=zero, **betas)
        case "squaredcos_cap_v2":
            return squared_cosine(spec.num_train_timesteps, zero_terminal_snr=zero)
        case _:
            assert_never(spec.beta_schedule)


def build_heads(spec: ObjectiveSpec, model: ModelSpec, seed: int) -> nn.Module | None:
    """Return the modules that learn with the student and are thrown away after the run, or None."""
    match spec:
        case AutoencodingSpec() | DenoisingSpec() | DistillationSpec() | SceneCheckingSpec() | TinyAutoencodingSpec():
            return None
        case SceneTextSpec():
            second = model.text_encoder_2
            assert second is not None, "recipes train both encoders of SDXL-shaped models"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "weights", "heads"))
                return SceneHeads(slot_sizes(), model.unet.cross_attention_dim, second.projection_dim, mention_sizes())
        case _:
            assert_never(spec)
