"""Composition: a recipe becomes student, data, objective and trainer, and runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from vega_diffusion.data.batches import BatchSource
from vega_diffusion.models.grow import grow
from vega_diffusion.objectives.autoencoding import measure_scaling, start_fresh
from vega_diffusion.objectives.build import build_heads, build_objective
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.objective import AutoencodingSpec
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.recipe import Component, TrainRecipe
from vega_diffusion.training.components import (
    digest,
    find_spec,
    load_weights,
    locate,
    publish_components,
    read_component,
    seeded_component,
    unread_modules,
    warm_start,
)
from vega_diffusion.training.loop import SampleFunction, Trainer, TrainResult, make_accelerator
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sources import build_source
from vega_diffusion.training.student import Student

Warn = Callable[[str], None]
SampleMaker = Callable[[ModelSpec, RunDirectory], SampleFunction]

SCALING_SAMPLES = 64
# Frozen components that each objective leans on, beside what it trains.
HELPERS = {"denoising": ("text_encoder", "text_encoder_2"), "autoencoding": (), "scene_text": (), "scene_checking": ()}


@dataclass(frozen=True)
class RunParts:
    """What a recipe's model section was turned into; `inputs` are the hashes of the weights it names."""

    spec: ModelSpec
    student: Student
    frozen: dict[str, nn.Module]
    inputs: dict[str, str]


def run_recipe(
    recipe: TrainRecipe,
    directory: RunDirectory,
    *,
    warn: Warn,
    init_from: str | None = None,
    device: str = "auto",
    sample_maker: SampleMaker | None = None,
) -> TrainResult:
    """Train a recipe in its run directory, from where it stands.

    Args:
        recipe: The run.
        directory: Its folder.
        warn: Called with one line for what the user should know.
        init_from: First weights (a folder, a file, `run:NAME`); only for a run without a state.
        device: `auto`, `cpu` or an accelerator's name.
        sample_maker: Makes the sample function for a model and a run.

    Raises:
        VegaError: The recipe does not fit the machine, the weights or the run's saved state.
    """
    accelerator = make_accelerator(recipe, device)
    directory.create()
    with directory.locked() if accelerator.is_main_process else nullcontext():
        spec = find_spec(recipe.model.base)
        for name, reference in recipe.model.weights.items():
            locate(reference, name)  # before an hour of encoding, not after it
        # Data first: the autoencoder has come and gone before the networks that are trained take memory. All processes
        # fill the caches together.
        source = build_source(recipe, spec, accelerator.device, frozen_components(recipe, spec))
        parts = build_parts(recipe)
        if init_from is not None:
            report = warm_start(parts.student, init_from)
            warn(str(report))
        trainer = Trainer(
            recipe,
            parts.student,
            build_objective(recipe.objective, parts.spec, parts.frozen),
            source,
            directory,
            accelerator,
            publish=lambda student: _publish(student, recipe, source, directory),
            on_sample=sample_maker(parts.spec, directory) if sample_maker else None,
            inputs=parts.inputs,
            init_from=init_from,
            warn=warn,
        )
        if trainer.resume():
            warn(f"resuming {directory.name} after step {trainer.step}")
        if accelerator.is_main_process:
            _write_recipe(recipe, directory)
        try:
            return trainer.train()
        finally:
            accelerator.end_training()


def build_parts(recipe: TrainRecipe) -> RunParts:
    """Build the recipe's components, trained and frozen, with the weights that it names.

    Raises:
        VegaError: A component or its weights are not there or do not fit.
    """
    spec = find_spec(recipe.model.base)
    inputs: dict[str, str] = {}
    trained = {name: _component(recipe, spec, name, inputs) for name in recipe.model.train}
    if isinstance(recipe.objective, AutoencodingSpec) and "vae" not in inputs:
        start_fresh(trained["vae"], recipe.objective.initial_logvar)
    frozen = frozen_components(recipe, spec, inputs)
    heads = build_heads(recipe.objective, spec, recipe.seed)
    freeze = (*recipe.model.freeze, *unread_modules(trained))
    student = Student(trained, heads, freeze, recipe.model.freeze_after)
    return RunParts(spec, student.train(), frozen, inputs)


def frozen_components(
    recipe: TrainRecipe, spec: ModelSpec, inputs: dict[str, str] | None = None
) -> dict[str, nn.Module]:
    """Return the components that the recipe's objective leans on and does not train; hashes go into `inputs`."""
    names = [name for name in HELPERS[recipe.objective.kind] if name not in recipe.model.train]
    hashes = {} if inputs is None else inputs
    return {name: _component(recipe, spec, name, hashes).eval().requires_grad_(False) for name in names}


def _component(recipe: TrainRecipe, spec: ModelSpec, name: str, inputs: dict[str, str]) -> nn.Module:
    module, model = seeded_component(spec, name, recipe.seed), recipe.model
    grown = name in model.grow_from
    given: dict[Component, str] = {**model.weights, **model.grow_from}
    reference = given.get(cast(Component, name), None if model.base in PRESETS else model.base)
    if reference is not None:
        path = locate(reference, name)
        if grown:
            grow(module, read_component(name, path))
        else:
            load_weights(module, name, path)
        inputs[name] = digest([path])
    return module


def _publish(student: Student, recipe: TrainRecipe, source: BatchSource, directory: RunDirectory) -> None:
    """Write the weights; an autoencoder's config gets the scaling factor that its latents have now."""
    if isinstance(recipe.objective, AutoencodingSpec):
        vae = student.get_submodule("vae")
        pixels = source.load(range(SCALING_SAMPLES)).tensors["pixels"].to(next(vae.parameters()).device)
        vae.register_to_config(scaling_factor=round(measure_scaling(vae, pixels), 5))  # type: ignore[operator]
    publish_components(student, directory.ema)


def _write_recipe(recipe: TrainRecipe, directory: RunDirectory) -> None:
    temporary: Path = directory.recipe.with_suffix(".tmp")
    temporary.write_text(recipe.to_json(indent=1), encoding="utf-8")
    os.replace(temporary, directory.recipe)
