"""Composition: a recipe becomes student, data, objective and trainer, and runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from vega_diffusion.data.batches import BatchSource, LatentSource
from vega_diffusion.data.image_latents import ImageLatents
from vega_diffusion.data.interleaved_samples import InterleavedSamples
from vega_diffusion.data.order import ShuffledOrder
from vega_diffusion.diffusion.randomness import derive_seed
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.components import has_bfloat16_kernels
from vega_diffusion.models.attention import use_training_attention
from vega_diffusion.models.lora import add_lora, is_adapter
from vega_diffusion.models.words import learn_words
from vega_diffusion.objectives.autoencoding import measure_scaling, start_fresh
from vega_diffusion.objectives.before import ModelBefore
from vega_diffusion.objectives.build import build_denoising, build_heads, build_objective
from vega_diffusion.objectives.teachers import Teacher
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.objective import AutoencodingSpec, DenoisingSpec
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.recipe import Component, TrainRecipe
from vega_diffusion.training.checkpointing import enable, resolved
from vega_diffusion.training.components import (
    carved_unet,
    digest,
    load_weights,
    locate,
    model_spec,
    publish_components,
    seeded_component,
    unread_modules,
    warm_start,
    with_own_autoencoder,
)
from vega_diffusion.training.denormals import flushed_denormals
from vega_diffusion.training.encoders import load_tokenizers
from vega_diffusion.training.loop import SampleFunction, Trainer, TrainResult, make_accelerator
from vega_diffusion.training.run_directory import RunDirectory, unfinished, vega_home
from vega_diffusion.training.sample_budget import sample_interval
from vega_diffusion.training.sources import build_source
from vega_diffusion.training.student import Student
from vega_diffusion.training.teacher_cache import open_outputs
from vega_diffusion.training.teachers import build_teachers

Warn = Callable[[str], None]
SampleMaker = Callable[[ModelSpec, RunDirectory, BatchSource], SampleFunction]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SCALING_SAMPLES = 64
# Frozen components that each objective leans on, beside what it trains.
HELPERS = {
    "denoising": ("text_encoder", "text_encoder_2"),
    "distillation": ("text_encoder", "text_encoder_2"),
    "autoencoding": (),
    "tiny_autoencoding": ("vae",),
    "scene_text": (),
    "scene_checking": (),
}


@dataclass(frozen=True)
class RunParts:
    """What a recipe was turned into; `inputs` are the hashes of the weights and maps it names."""

    spec: ModelSpec
    student: Student
    frozen: dict[str, nn.Module]
    teachers: list[Teacher]
    inputs: dict[str, str]
    before: ModelBefore | None = None


@flushed_denormals()
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
        sample_maker: Makes the sample function for a model, a run and its samples.

    Raises:
        VegaError: The recipe does not fit the machine, the weights or the run's saved state.
    """
    if init_from is not None and recipe.model.keeps_latents:
        raise InvalidValue(
            "--init-from", init_from, "nothing where the encoder is frozen", "name the weights in model.weights.vae"
        )
    priors = recipe.data.prior if isinstance(recipe.data, ImageLatentsSpec) else ()
    for field, value in (
        ("model.lora", recipe.model.lora),
        ("model.words", recipe.model.words),
        # That model is copied from the recipe's weights, before others could take their place.
        ('data.prior.target = "model"', any(prior.target == "model" for prior in priors)),
    ):
        if init_from is not None and value:
            raise InvalidValue("--init-from", init_from, f"nothing with {field}", "name the weights in model.weights")
    accelerator = make_accelerator(recipe, device)
    recipe = fitted(recipe, accelerator.device, warn)
    if accelerator.device.type == "cpu" and recipe.mixed_precision == "bf16" and not has_bfloat16_kernels():
        warn("mixed_precision: bf16 without instructions for it is slower here than float32; a run with no is faster")
    directory.create()
    with directory.locked() if accelerator.is_main_process else nullcontext():
        spec = model_spec(recipe)
        for name, reference in references(recipe):
            locate(reference, name)  # before an hour of encoding, not after it
            if so_far := unfinished(reference):
                warn(f"{so_far}, whose weights are taken; train it to its end for those that its recipe promises")
        # Data first: the autoencoder has come and gone before the networks that are trained take memory. All processes
        # fill the caches together.
        source = build_source(recipe, spec, accelerator.device, frozen_components(recipe, spec))
        interval = sample_interval(recipe, spec)
        if interval != recipe.sample_every:
            warn(f"sample_every: {recipe.sample_every} became {interval}, which keeps samples.budget")
        parts = build_parts(recipe)
        if captions_cached(recipe):
            parts = replace(parts, frozen={})
        if init_from is not None:
            report = warm_start(parts.student, init_from)
            warn(str(report))
        distillation = recipe.objective if isinstance(recipe.objective, DistillationSpec) else None
        if distillation is not None and distillation.fixed_samples is not None:
            parts = with_outputs(recipe, distillation, parts, cast(LatentSource, source), accelerator.device)
        swaps = distillation.swaps() if distillation else {}
        notes = {step: f"teachers from here on: {names}" for step, names in swaps.items()}
        trainer = Trainer(
            recipe,
            parts.student,
            build_objective(
                recipe.objective, parts.spec, parts.frozen, parts.teachers, recipe.batch_size, parts.before
            ),
            source,
            directory,
            accelerator,
            publish=lambda student, step: _publish(student, step, recipe, source, directory),
            on_sample=sample_maker(parts.spec, directory, source) if sample_maker and interval else None,
            sample_every=interval,
            inputs=parts.inputs,
            init_from=init_from,
            notes=notes,
            order=fixed_order(recipe),
            warn=warn,
        )
        if trainer.resume():
            warn(f"resuming {directory.name} after step {trainer.step}")
        if accelerator.is_main_process:
            _write_json(directory.recipe, recipe.to_json(indent=1))
            pictures = source.sources[0] if isinstance(source, InterleavedSamples) else source
            if isinstance(pictures, ImageLatents) and pictures.report is not None:
                _write_json(directory.data, json.dumps(pictures.report.to_dict(), indent=1))
        try:
            return trainer.train()
        finally:
            accelerator.end_training()


def fitted(recipe: TrainRecipe, device: torch.device, warn: Warn) -> TrainRecipe:
    """Return the recipe with the blocks that must compute their activations again chosen for the memory there is."""
    if recipe.activation_checkpointing != "auto":
        return recipe
    from vega_diffusion.training.planner import needed_without_checkpointing  # which itself builds runs

    found = resolved(recipe, device, lambda asked: needed_without_checkpointing(asked, device))
    blocks = found.activation_checkpointing
    warn(f"activation_checkpointing: auto chose {', '.join(blocks) if isinstance(blocks, tuple) else 'no block'}")
    return found


def references(recipe: TrainRecipe) -> list[tuple[str, str]]:
    """Return (component, where its weights come from) of all weights that a recipe names."""
    found: list[tuple[str, str]] = [*recipe.model.weights.items()]
    if recipe.model.surgery is not None:
        found.append(("unet", recipe.model.surgery.teacher))
    if isinstance(recipe.objective, DistillationSpec):
        found += [("unet", teacher.weights) for teacher in recipe.objective.teachers if teacher.weights is not None]
    return found


def build_parts(recipe: TrainRecipe) -> RunParts:
    """Build the recipe's components, trained and frozen, with the weights that it names.

    Raises:
        VegaError: A component or its weights are not there or do not fit.
    """
    spec = model_spec(recipe)
    inputs: dict[str, str] = {}
    trained = {name: _component(recipe, spec, name, inputs) for name in recipe.model.train}
    if isinstance(recipe.objective, AutoencodingSpec) and "vae" not in inputs:
        if recipe.model.keeps_latents:
            raise InvalidValue(
                "model.weights.vae", None, "weights, as its encoder is frozen", "name run:NAME or a folder"
            )
        start_fresh(trained["vae"], recipe.objective.initial_logvar)
    frozen = frozen_components(recipe, spec, inputs)
    heads = build_heads(recipe.objective, spec, recipe.seed)
    before = model_before(recipe, spec, trained)
    if recipe.model.lora is not None:
        for name, module in trained.items():
            add_lora(module, recipe.model.lora, derive_seed(recipe.seed, "lora", name))
    _learn_words(recipe, spec, trained)
    if "unet" in trained and not recipe.compile:
        use_training_attention(trained["unet"])
    for module in trained.values():
        _hold(module, recipe)
    freeze = (*recipe.model.freeze, *unread_modules(trained))
    student = Student(trained, heads, freeze, recipe.model.freeze_after, recipe.model.lora is not None)
    if recipe.activation_checkpointing:
        assert recipe.activation_checkpointing != "auto", "resolved before anything is built"
        enable(student.get_submodule("unet"), recipe.activation_checkpointing)
    teachers = []
    if isinstance(recipe.objective, DistillationSpec):
        teachers = build_teachers(recipe.objective, spec, inputs, recipe.mixed_precision)
    return RunParts(spec, student.train(), frozen, teachers, inputs, before)


def _learn_words(recipe: TrainRecipe, spec: ModelSpec, trained: Mapping[str, nn.Module]) -> None:
    """Let the recipe's words, and nothing else, learn in the text encoders that learn."""
    if not recipe.model.words:
        return
    pair = load_tokenizers(recipe, spec)
    for name, tokenizer in zip(("text_encoder", "text_encoder_2"), pair.tokenizers, strict=True):
        if name in trained:
            # The first of several: what begins a rare word is no word of its own, what ends it may be one ("ne", "on").
            learn_words(trained[name], [tokenizer(word).input_ids[1] for word in recipe.model.words])


def model_before(recipe: TrainRecipe, spec: ModelSpec, trained: Mapping[str, nn.Module]) -> ModelBefore | None:
    """Return the model as it is now, where it is to answer for the pictures of `data.prior`."""
    priors = recipe.data.prior if isinstance(recipe.data, ImageLatentsSpec) else ()
    asked = (False, *(prior.target == "model" for prior in priors))
    if not any(asked):
        return None
    texts = (0.0, *(prior.text_weight for prior in priors))
    return ModelBefore(trained, recipe.model.lora is not None, spec.schedule.prediction_type, asked, texts)


def _hold(module: nn.Module, recipe: TrainRecipe) -> None:
    """Hold a trained component's weights as the recipe says; adapters stay fp32, whose steps bf16 would round away."""
    dtype = DTYPES[recipe.model.dtype]
    for name, parameter in module.named_parameters():
        if not is_adapter(name):
            parameter.data = parameter.data.to(dtype)
    if recipe.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def captions_cached(recipe: TrainRecipe) -> bool:
    """Whether captions are encoded before the run: text encoders that do not learn are then gone while it lasts."""
    texts = {"text_encoder", "text_encoder_2"}
    return texts <= set(HELPERS[recipe.objective.kind]) and not texts & set(recipe.model.train)


def fixed_order(recipe: TrainRecipe) -> ShuffledOrder | None:
    """Return the order of a run that goes through a fixed number of samples; pictures of one size stay together.

    The first time they come as they do in a run without a fixed number: what is asked once changes no such run.
    """
    objective = recipe.objective
    if not isinstance(objective, DistillationSpec) or objective.fixed_samples is None:
        return None
    block = recipe.micro_batch_size if recipe.data.kind == "image_latents" else 1
    return ShuffledOrder(objective.fixed_samples, recipe.seed, block, starts_in_order=True)


def with_outputs(
    recipe: TrainRecipe, objective: DistillationSpec, parts: RunParts, source: LatentSource, device: torch.device
) -> RunParts:
    """Return the parts with teachers that recall what they say of a run's fixed samples."""
    task = build_denoising(DenoisingSpec(), parts.spec, parts.frozen)
    task.to(device)
    shared: dict[str, str | int] = {name: parts.inputs.get(name, "") for name in ("text_encoder", "text_encoder_2")}
    shared["schedule"] = parts.spec.schedule.to_json()
    teachers = []
    for teacher in parts.teachers:
        identity = shared | {"teacher": parts.inputs[f"teachers.{teacher.spec.name}"]}
        root = vega_home() / "outputs"
        positions = objective.asked_about(teacher.spec, recipe.steps, recipe.batch_size)
        recall = open_outputs(root, identity, teacher, task, source, parts.spec, recipe.seed, positions, device)
        teachers.append(replace(teacher, recall=recall))
    return replace(parts, teachers=teachers)


def frozen_components(
    recipe: TrainRecipe, spec: ModelSpec, inputs: dict[str, str] | None = None
) -> dict[str, nn.Module]:
    """Return the components that the recipe's objective leans on and does not train; hashes go into `inputs`."""
    names = [name for name in HELPERS[recipe.objective.kind] if name not in recipe.model.train]
    hashes = {} if inputs is None else inputs
    return {name: _component(recipe, spec, name, hashes).eval().requires_grad_(False) for name in names}


def _component(recipe: TrainRecipe, spec: ModelSpec, name: str, inputs: dict[str, str]) -> nn.Module:
    model = recipe.model
    if name == "unet" and model.surgery is not None:
        return carved_unet(model.surgery, spec, recipe.seed, inputs)
    reference = model.weights.get(cast(Component, name), None if model.base in PRESETS else model.base)
    path = None if reference is None else locate(reference, name)
    if name == "vae" and path is not None:
        spec = with_own_autoencoder(spec, path)
    module = seeded_component(spec, name, recipe.seed)
    if path is not None:
        load_weights(module, name, path)
        inputs[name] = digest([path])
    return module


def _publish(student: Student, step: int, recipe: TrainRecipe, source: BatchSource, directory: RunDirectory) -> None:
    """Write the weights; where latents may have changed, the autoencoder's config gets their scaling factor."""
    if isinstance(recipe.objective, AutoencodingSpec) and not recipe.model.keeps_latents:
        vae = student.get_submodule("vae")
        pixels = source.load(range(SCALING_SAMPLES)).tensors["pixels"].to(next(vae.parameters()).device)
        vae.register_to_config(scaling_factor=round(measure_scaling(vae, pixels), 5))  # type: ignore[operator]
    publish_components(student, directory.ema, step)


def _write_json(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
