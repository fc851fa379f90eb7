"""What a script's run leaves at the top of its folder: weights as by the original, a recipe, pictures, a card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vega_diffusion.inference.engine import Engine
from vega_diffusion.models.build import build_component
from vega_diffusion.models.export import ModelParts, save_model
from vega_diffusion.models.layout import MODEL_INDEX, PIPELINE_COMPONENTS, VEGA_JSON
from vega_diffusion.models.lora_file import read_lora, write_lora
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_weights import convert_layout
from vega_diffusion.specs.lora import LORA_FILE
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.specs.request import GenerateRequest
from vega_diffusion.specs.toml_text import to_toml
from vega_diffusion.training.class_pictures import model_folder
from vega_diffusion.training.components import load_weights, locate, model_spec, with_own_autoencoder
from vega_diffusion.training.diffusers_job import Job
from vega_diffusion.training.metrics import read_metrics
from vega_diffusion.training.output_folder import find_state, staged, standing_states
from vega_diffusion.training.publish import COMPONENTS, tokenizers_of
from vega_diffusion.training.result_card import ResultFacts, result_card
from vega_diffusion.training.run_directory import RunDirectory

KOHYA_FILE = "pytorch_lora_weights_kohya.safetensors"
RECIPE = "recipe.toml"
CARD = "README.md"


def result_names(job: Job) -> list[str]:
    """Return what the result will be called at the top of the folder."""
    if job.recipe.model.lora is None:
        weights = [MODEL_INDEX, VEGA_JSON, *PIPELINE_COMPONENTS]
    else:
        weights = [LORA_FILE, *([KOHYA_FILE] if job.kohya else [])]
    return [*weights, RECIPE, CARD, *_pictures(job)]


def continued(job: Job, directory: RunDirectory) -> TrainRecipe:
    """Return the job's recipe, which when a run goes on has as many views of a picture as that run began with.

    The number of views follows from the length of a run, and a run may be made longer.

    Raises:
        MissingFile: The state to go on from is not there.
    """
    recipe, stands = job.recipe, standing_states(directory)
    if job.resume is None or (job.resume == "latest" and not stands):
        return recipe
    for state in reversed(stands) if job.resume == "latest" else [find_state(job.resume, directory)]:
        with suppress(OSError, ValueError, KeyError):  # a damaged one: the run takes the one before
            views = json.loads((state / "state.json").read_text(encoding="utf-8"))["identity"]["data.variants"]
            break
    else:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"variants": views})})


def write_recipe(job: Job, recipe: TrainRecipe, directory: RunDirectory) -> Path:
    """Write the recipe as TOML that `vega train` runs, and return the file.

    Raises:
        VegaError: It cannot be written.
    """
    with staged(directory.path) as place:
        head = f"# {job.script}: {job.summary()}\n# Run it again, under a name of its own: vega train {RECIPE}\n\n"
        (place / RECIPE).write_text(head + to_toml(recipe), encoding="utf-8")
    return directory.path / RECIPE


def finish(job: Job, recipe: TrainRecipe, directory: RunDirectory, device: str, say: Callable[[str], object]) -> None:
    """Write the result of a run that is done: first the weights, then pictures and a card.

    Raises:
        VegaError: It cannot be written; what is in the run's folder stays.
    """
    with staged(directory.path) as place:
        if recipe.model.lora is None:
            _write_pipeline(recipe, directory, place, job)
        else:
            _write_adapters(recipe, directory, place, job.kohya)
    with staged(directory.path) as place:
        _draw(job, recipe, directory, place, device, say)
        (place / CARD).write_text(result_card(facts(job, recipe, directory, place)), encoding="utf-8")


def result_files(job: Job, directory: RunDirectory) -> dict[str, Path]:
    """Return what is to be uploaded: weights, card and pictures, not states, numbers or the recipe with its paths."""
    names = [name for name in result_names(job) if name != RECIPE and (directory.path / name).exists()]
    found: dict[str, Path] = {}
    for name in names:
        path = directory.path / name
        files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
        found |= {one.relative_to(directory.path).as_posix(): one for one in files}
    return found


def facts(job: Job, recipe: TrainRecipe, directory: RunDirectory, place: Path) -> ResultFacts:
    """Return what the card says, from the run's own files."""
    state = json.loads((standing_states(directory)[-1] / "state.json").read_text(encoding="utf-8"))
    lines = [line for line in read_metrics(directory.metrics) if "loss" in line]
    return ResultFacts(
        name=directory.name,
        script=job.script,
        base=job.base.name,
        licence=job.base.licence,
        recipe=recipe,
        steps=state["step"],
        seconds=state["seconds"],
        num_pictures=job.num_pictures,
        data_hash=state["source"],
        last_loss=lines[-1]["loss"] if lines else None,
        pictures=tuple(name for name in _pictures(job) if (place / name).is_file()),
        kohya=KOHYA_FILE if job.kohya else None,
    )


def _pictures(job: Job) -> list[str]:
    samples = job.recipe.samples
    return [f"image_{number}.png" for number in range(samples.num_images)] if samples.prompts else []


def _write_adapters(recipe: TrainRecipe, directory: RunDirectory, place: Path, kohya: bool) -> None:
    shutil.copy2(directory.ema / LORA_FILE, place / LORA_FILE)
    if kohya:
        tree = MapTree.of_spec(model_spec(recipe))
        write_lora(place / KOHYA_FILE, convert_layout(read_lora(place / LORA_FILE), "kohya", tree))


def _write_pipeline(recipe: TrainRecipe, directory: RunDirectory, place: Path, job: Job) -> None:
    """Write a whole model: the averaged or last weights of what learned, the others as they were."""
    spec = model_spec(recipe).model_copy(update={"name": directory.name})
    base = None if recipe.model.base in PRESETS else recipe.model.base
    modules: dict[str, Any] = {}
    for component in COMPONENTS:
        named = recipe.model.weights.get(component, base)
        path = locate(str(directory.ema if component in recipe.model.train else named), component)
        own = with_own_autoencoder(spec, path) if component == "vae" else spec
        modules[component] = build_component(own, component)
        load_weights(modules[component], component, path)
    first, second = tokenizers_of(recipe, spec)
    parts = ModelParts(
        unet=modules["unet"],
        autoencoder=modules["vae"],
        text_encoder=modules["text_encoder"],
        text_encoder_2=modules["text_encoder_2"],
        tokenizer=first,
        tokenizer_2=second,
    )
    record = {"script": job.script, "base": job.base.name, "steps": recipe.steps}
    whole = place / "model"
    save_model(whole, spec, parts, ("fp32",), record)
    for path in list(whole.iterdir()):
        path.rename(place / path.name)
    whole.rmdir()


def _draw(
    job: Job, recipe: TrainRecipe, directory: RunDirectory, place: Path, device: str, say: Callable[[str], object]
) -> None:
    """Draw the validation prompt with what was trained, by the model's own settings."""
    names, samples = _pictures(job), recipe.samples
    if not names:
        return
    lora = recipe.model.lora is not None
    if lora:
        with model_folder(recipe) as folder:
            _draw_with(folder, (f"{directory.path / LORA_FILE}@1",), recipe, place, names, device)
    else:
        _draw_with(directory.path, (), recipe, place, names, device)
    say(f"{len(names)} pictures of {samples.prompts[0]!r}: {directory.path / names[0]} ...")


def _draw_with(
    folder: Path, loras: tuple[str, ...], recipe: TrainRecipe, place: Path, names: list[str], device: str
) -> None:
    engine, samples = Engine.load(str(folder), device), recipe.samples
    side: int = recipe.data.resolution_px  # type: ignore[union-attr]
    for number, name in enumerate(names):
        request = GenerateRequest(
            prompt=samples.prompts[0], seed=samples.seed + number, width=side, height=side, loras=loras
        )
        engine.generate(request)[0].image.save(place / name, format="PNG")
