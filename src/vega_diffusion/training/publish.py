"""Trained weights as a model folder of the published layout, with a record of how every component was made.

Components may come from several runs. What lives here: collecting weights, records and tokenizers. What does not: the
layout (`models/export.py`) and the card's text (`model_card.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.models.build import build_component
from vega_diffusion.models.checker import RECORD
from vega_diffusion.models.checkpoint import load_tiny_autoencoder
from vega_diffusion.models.detect import tiny_autoencoder_spec
from vega_diffusion.models.export import ModelParts, save_model
from vega_diffusion.models.find import resolve_model
from vega_diffusion.models.layout import Precision, read_json
from vega_diffusion.models.lora_file import lora_path
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_merge import merge_adapters
from vega_diffusion.models.lora_weights import load_lora_for
from vega_diffusion.models.tiny_folder import tiny_home
from vega_diffusion.models.tokenizer import TokenizerFiles
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import load_weights, locate, model_spec
from vega_diffusion.training.encoders import load_tokenizers
from vega_diffusion.training.model_card import model_card
from vega_diffusion.training.run_directory import RunDirectory

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae")


def export_run(
    run: str,
    folder: Path,
    name: str,
    precisions: Sequence[Precision] = ("fp32", "fp16"),
    notes: str = "",
    scores: Mapping[str, Any] | None = None,
    others: Mapping[str, str] | None = None,
) -> ModelSpec:
    """Write the model that a run trained: its averaged weights, and the frozen ones that its recipe names.

    Adapters are merged into the weights that they were trained on.

    Args:
        run: Name of the run.
        folder: Where the model goes; an older folder there is replaced at the end.
        name: What the model is called.
        precisions: Which weight files.
        notes: Free text for card and record.
        scores: `result.json` of an evaluation, for the card.
        others: Component -> weights to take instead of those that the recipe names.

    Raises:
        MissingFile: The run has no weights or no recipe, or weights that it names are gone.
        VegaError: The recipe names no weights for a component, or the folder cannot be written.
    """
    recipe = run_recipe_of(run)
    references = {}
    for component in COMPONENTS:
        base = None if recipe.model.base in PRESETS else recipe.model.base
        named = dict(recipe.model.weights).get(component, base)  # type: ignore[call-overload]
        if component in recipe.model.train:
            reference = named if recipe.model.lora is not None else f"run:{run}"
        else:
            reference = (others or {}).get(component, named)
        if reference is None and component in recipe.model.train:
            raise VegaError(
                f"model.weights.{component}: missing in the recipe of run {run}, so its adapters sit on nothing"
            )
        if reference is None:
            raise VegaError(
                f"model.weights.{component}: missing in the recipe of run {run}; name them with --{component}"
            )
        references[component] = reference
    spec = model_spec(recipe)
    adapted_by = None if recipe.model.lora is None else run
    tokenizers = tokenizers_of(recipe, spec)
    return publish(spec, folder, name, references, tokenizers, precisions, notes, scores, adapted_by)


def publish(
    spec: ModelSpec,
    folder: Path,
    name: str,
    references: Mapping[str, str],
    tokenizers: tuple[TokenizerFiles, TokenizerFiles],
    precisions: Sequence[Precision] = ("fp16",),
    notes: str = "",
    scores: Mapping[str, Any] | None = None,
    adapted_by: str | None = None,
) -> ModelSpec:
    """Write a model out of components from anywhere.

    Args:
        spec: Its architecture.
        folder: Where it goes; an older folder there is replaced at the end.
        name: What it is called.
        references: Component -> where its weights are: `run:NAME`, a known model or a model folder. A `vae_tiny` is
            written where it is among them, or beside the `vae`.
        tokenizers: Both.
        precisions: Which weight files.
        notes: Free text for card and record.
        scores: `result.json` of an evaluation, for the card.
        adapted_by: Name of the run whose adapters are merged into the weights of `references`.

    Raises:
        VegaError: Weights or adapters are not there or do not fit, or the folder cannot be written.
    """
    vae = locate(references["vae"], "vae")
    config = read_json(vae.parent / "config.json")
    autoencoder = spec.autoencoder.model_copy(update={"scaling_factor": float(config["scaling_factor"])})
    spec = spec.model_copy(update={"autoencoder": autoencoder, "name": name})
    modules: dict[str, Any] = {component: build_component(spec, component) for component in references}
    for component, module in modules.items():
        load_weights(module, component, locate(references[component], component))
    made_by = dict(references)
    tiny = None if "vae_tiny" in references else tiny_home(vae.parent.parent)
    if tiny is not None:
        where = tiny / "config.json"
        modules["vae_tiny"] = load_tiny_autoencoder(tiny, tiny_autoencoder_spec(read_json(where), str(where)))
        made_by["vae_tiny"] = references["vae"]
    if adapted_by is not None:
        file = lora_path(RunDirectory(adapted_by).ema, f"run:{adapted_by}")
        for component, adapters in load_lora_for(file, MapTree.of(name, modules)).items():
            merge_adapters(modules[component], component, [(adapters, 1.0)])
            made_by[component] = f"run:{adapted_by}"
    parts = ModelParts(
        unet=modules["unet"],
        autoencoder=modules["vae"],
        text_encoder=modules["text_encoder"],
        text_encoder_2=modules["text_encoder_2"],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tiny_autoencoder=modules.get("vae_tiny"),
    )
    records = {component: component_record(reference, component) for component, reference in made_by.items()}
    card = model_card(name, spec, records, notes, scores)
    return save_model(folder, spec, parts, precisions, {"components": records, "notes": notes}, card)


def run_recipe_of(run: str) -> TrainRecipe:
    """Return the recipe that a run was trained by.

    Raises:
        MissingFile: There is no such run.
    """
    directory = RunDirectory(run)
    try:
        return TrainRecipe.from_json(directory.recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingFile(f"run:{run}: no recipe in {directory.path}; train that recipe first") from error


def tokenizers_of(recipe: TrainRecipe, spec: ModelSpec) -> tuple[TokenizerFiles, TokenizerFiles]:
    """Return the tokenizers that a recipe was trained with."""
    first, second = load_tokenizers(recipe, spec).tokenizers
    return TokenizerFiles.of(first), TokenizerFiles.of(second)


def component_record(reference: str, component: str) -> dict[str, Any]:
    """Return how a component's weights were made, and before that the weights they started from, as far back as known.

    Args:
        reference: `run:NAME`, or a known model or model folder whose `vega.json` tells.
        component: Name of the component.

    Raises:
        MissingFile: The run has no recipe or no saved state.
    """
    if not reference.startswith("run:"):
        if component == "checker":  # a folder of its own, whose record tells
            return read_json(Path(reference) / RECORD)["provenance"]
        try:
            return read_json(resolve_model(reference) / "vega.json")["provenance"]["components"][component]
        except (VegaError, KeyError, TypeError):
            return {"source": Path(reference).name if Path(reference).exists() else reference}
    directory = RunDirectory(reference.removeprefix("run:"))
    try:
        recipe = json.loads(directory.recipe.read_text(encoding="utf-8"))
        newest = max(directory.states.glob("step-*"))
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingFile(f"{reference}: no recipe or state in {directory.path}; train that recipe first") from error
    steps = state["step"]
    record = {"run": directory.name, "steps": steps, "samples": steps * recipe["batch_size"]}
    record["recipe"] = _without_folders(recipe)
    model = recipe["model"]
    surgery = {"unet": model["surgery"]["teacher"]} if model.get("surgery") else model.get("grow_from", {})
    start = state["init_from"] or (model["weights"] | surgery).get(component)
    return record | ({"started_from": component_record(start, component)} if start else {})


def _without_folders(value: Any) -> Any:
    """Call files by their names: where they lie on one machine means nothing on another."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def check_precisions(given: Sequence[str]) -> tuple[Precision, ...]:
    """Return weight file kinds as they were asked for.

    Raises:
        InvalidValue: One is neither fp32 nor fp16, or none is given.
    """
    if not given or not set(given) <= {"fp32", "fp16"}:
        raise InvalidValue("--precision", " ".join(given), "fp32, fp16 or both", "choose")
    return tuple(given)  # type: ignore[return-value]
