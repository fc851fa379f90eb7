"""From a recipe's teachers to `Teacher`s: checked against the student, weights found now and loaded when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.features import feature_pairs
from vega_diffusion.objectives.teachers import Teacher
from vega_diffusion.specs.architecture import ModelSpec, UNetSpec
from vega_diffusion.specs.distillation import DistillationSpec, TeacherSpec
from vega_diffusion.specs.known_maps import find_map
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.training.components import digest, find_spec, locate, read_component

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What of a noise schedule may differ between teacher and student: how it is sampled, and what is predicted.
_SAMPLING = {"scheduler", "prediction_type", "timestep_spacing", "steps_offset"}


def build_teachers(
    objective: DistillationSpec, student: ModelSpec, inputs: dict[str, str] | None, mixed_precision: str = "no"
) -> list[Teacher]:
    """Return the teachers of a distillation; weights are read when a teacher's first step comes.

    Args:
        objective: Names them.
        student: The student's model.
        inputs: Gets the hashes of weights and maps. None plans a run: networks on the meta device, no weights.
        mixed_precision: The recipe's, for teachers that are held as the run computes.

    Raises:
        InvalidValue: A teacher's shape, noise schedule or map does not fit the student.
        VegaError: Its weights are not there.
    """
    as_run = {"dtype": "fp32" if mixed_precision == "no" else mixed_precision}
    specs = [one.model_copy(update=as_run) if one.dtype == "run" else one for one in objective.teachers]
    return [_teacher(objective, spec, student, inputs) for spec in specs]


def _teacher(
    objective: DistillationSpec, spec: TeacherSpec, student: ModelSpec, inputs: dict[str, str] | None
) -> Teacher:
    model = find_spec(spec.base)
    field = f"objective.teachers.{spec.name}"
    _check_schedule(field, model, student)
    try:
        layers = find_map(spec.map, student.unet, model.unet)
    except VegaError as error:
        raise VegaError(f"{field}: {error}") from error
    outline = partial(_without_values, model.unet, spec)
    load: Callable[[], nn.Module] = outline
    if inputs is not None:
        reference = spec.weights or (None if spec.base in PRESETS else spec.base)
        if reference is None:
            raise InvalidValue(f"{field}.weights", None, "weights, as its base is an architecture alone", "name them")
        path = locate(reference, "unet")
        inputs[f"teachers.{spec.name}"] = digest([path])
        inputs[f"teachers.{spec.name}.map"] = hashlib.sha256(layers.to_json().encode()).hexdigest()
        load = partial(_load, model.unet, path, spec)
    pairs = () if objective.feature_level is None else feature_pairs(objective.feature_level, layers)
    return Teacher(spec, model.schedule.prediction_type, pairs, load, outline)


def _without_values(unet: UNetSpec, spec: TeacherSpec) -> nn.Module:
    with torch.device("meta"):
        network = build_unet(unet).eval().requires_grad_(False)
    return nn.Module.to(network, _DTYPES[spec.dtype])  # diffusers' own `to` warns of what holds for loaded models alone


def _load(unet: UNetSpec, path: Path, spec: TeacherSpec) -> nn.Module:
    """Return a teacher's U-Net: frozen, in evaluation mode, in its own dtype."""
    with torch.device("meta"):
        network = build_unet(unet)
    try:
        network.load_state_dict(read_component("unet", path, _DTYPES[spec.dtype]), strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise VegaError(f"objective.teachers.{spec.name}: {path}: {reason}; name weights of {spec.base}") from error
    network.eval().requires_grad_(False)
    if spec.compile:
        network.compile()
    return network


def _check_schedule(field: str, teacher: ModelSpec, student: ModelSpec) -> None:
    """A teacher must know the noise that the student sees: the same betas at the same timesteps."""
    fields = type(teacher.schedule).model_fields.keys() - _SAMPLING
    for name in sorted(fields):
        own, other = getattr(student.schedule, name), getattr(teacher.schedule, name)
        if own != other:
            raise InvalidValue(f"{field}: schedule.{name}", other, f"the student's {own!r}", "choose another teacher")
