"""Pictures of a class, drawn by the model that is about to learn a subject of it (prior preservation)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from vega_diffusion.data.picture_folder import list_folder
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.engine import Engine
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.data import PriorSpec
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.specs.request import GenerateRequest
from vega_diffusion.training.components import digest, locate, model_spec
from vega_diffusion.training.publish import COMPONENTS, publish, tokenizers_of
from vega_diffusion.training.run_directory import vega_home


def fill_class_pictures(recipe: TrainRecipe, prior: PriorSpec, resolution_px: int, device: torch.device) -> Path:
    """Return the folder of a class's pictures, after drawing those that it lacks; one process does, others wait.

    Picture i is of the caption with seed `prior.seed` + i, by the model's own settings; no file is replaced.

    Args:
        recipe: The run, whose model draws.
        prior: The class.
        resolution_px: Side of the pictures.
        device: Where to draw.

    Raises:
        VegaError: The folder cannot be written, or the model cannot draw.
    """
    if prior.caption is None:
        return Path(str(prior.folder)).expanduser()
    folder = Path(prior.folder).expanduser() if prior.folder else _own_folder(recipe, prior, resolution_px)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            missing = prior.num_pictures - len(list_folder(folder, "text")[0])
            if missing > 0:
                _draw(recipe, prior, resolution_px, device, folder, missing)
    except OSError as error:
        raise VegaError(
            f"data.prior.folder: {folder} cannot be written ({error.strerror}); name another folder"
        ) from error
    return folder


def _draw(
    recipe: TrainRecipe, prior: PriorSpec, resolution_px: int, device: torch.device, folder: Path, missing: int
) -> None:
    with model_folder(recipe) as model, tqdm(total=missing, unit="picture", desc="class", file=sys.stderr) as bar:
        engine = Engine.load(str(model), device.type)
        seed = prior.seed
        while missing:
            path = folder / f"class-{seed:08d}.png"
            if not path.exists():
                request = GenerateRequest(
                    prompt=str(prior.caption), seed=seed, width=resolution_px, height=resolution_px
                )
                picture = engine.generate(request)[0]
                whole = path.with_suffix(".part")
                picture.image.save(whole, format="PNG")
                whole.rename(path)
                missing -= 1
                bar.update()
            seed += 1


@contextmanager
def model_folder(recipe: TrainRecipe) -> Iterator[Path]:
    """Give a folder with the model that a recipe starts from: its base where that is one, else put together."""
    if recipe.model.base not in PRESETS and not recipe.model.weights and recipe.model.surgery is None:
        yield resolve_model(recipe.model.base)
        return
    spec = model_spec(recipe)
    with tempfile.TemporaryDirectory(prefix="vega-") as temporary:
        folder = Path(temporary) / "model"
        publish(spec, folder, "the model before training", _references(recipe), tokenizers_of(recipe, spec), ("fp32",))
        yield folder


def _references(recipe: TrainRecipe) -> dict[str, str]:
    base = None if recipe.model.base in PRESETS else recipe.model.base
    found = {name: dict(recipe.model.weights).get(name, base) for name in COMPONENTS}  # type: ignore[call-overload]
    for name, reference in found.items():
        if reference is None:
            raise VegaError(f"model.weights.{name}: missing; data.prior draws pictures of a class; name the weights")
    return {name: str(reference) for name, reference in found.items()}


def _own_folder(recipe: TrainRecipe, prior: PriorSpec, resolution_px: int) -> Path:
    """Return a folder under a hash of what decides the pictures."""
    weights = {name: digest([locate(reference, name)]) for name, reference in _references(recipe).items()}
    decides = {"caption": prior.caption, "size": resolution_px, "seed": prior.seed, "weights": weights}
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]
    return vega_home() / "class_pictures" / name
