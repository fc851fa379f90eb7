"""A run's components: built from the model's spec, filled with weights, and published again.

What does not live here: which components learn (student.py) and the layout of a whole model folder (models/).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vega_diffusion.data.scenes.checker_classes import checker_spec
from vega_diffusion.diffusion.randomness import derive_seed
from vega_diffusion.errors import MissingFile, UnreadableModel
from vega_diffusion.models.build import build_component
from vega_diffusion.models.checker import SceneChecker, write_checker
from vega_diffusion.models.checkpoint import read_tensors
from vega_diffusion.models.detect import autoencoder_spec, load_spec, unet_spec
from vega_diffusion.models.export import write_weights
from vega_diffusion.models.find import EMBEDDED, TEACHERS, is_hub_id, resolve_model
from vega_diffusion.models.layout import Precision, WeightName, from_published_key, read_json, weight_filename
from vega_diffusion.models.lora import save_lora
from vega_diffusion.models.surgery import carve
from vega_diffusion.models.words import with_plain_table
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.known_maps import find_map
from vega_diffusion.specs.objective import DenoisingSpec
from vega_diffusion.specs.presets import PRESETS, preset
from vega_diffusion.specs.recipe import SurgerySpec, TrainRecipe
from vega_diffusion.training.run_directory import PUBLISHED_STEP, run_weights
from vega_diffusion.training.state import write_folder
from vega_diffusion.training.student import Student


@dataclass(frozen=True)
class WeightReport:
    """What came of loading weights: component -> number of tensors that fitted (all of them: loading is strict)."""

    source: str
    tensors: dict[str, int]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count} of {count} tensors" for name, count in self.tensors.items())
        return f"first weights from {self.source}: {parts}"


def seeded_component(spec: ModelSpec, name: str, seed: int) -> nn.Module:
    """Build a component with fresh weights that depend on (seed, name) only; the checker knows the vocabulary.

    Raises:
        InvalidValue: The model has no such component.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights", name))
        return SceneChecker(checker_spec()) if name == "checker" else build_component(spec, name)


def unread_modules(components: Mapping[str, nn.Module]) -> list[str]:
    """Return the modules that no loss ever reaches: the first text encoder's last layer and final norm.

    SDXL reads that encoder's penultimate states, so these keep their fresh weights; telling them apart spares the
    optimizer and data parallelism parameters without a gradient.
    """
    if "text_encoder" not in components:
        return []
    names = [name for name, _ in components["text_encoder"].named_modules()]
    numbers = {name: name.partition("layers.")[2] for name in names}
    last = max((name for name in names if numbers[name].isdigit()), key=lambda name: int(numbers[name]))
    return [f"text_encoder.{name}" for name in names if name == last or name.endswith("final_layer_norm")]


def find_spec(base: str) -> ModelSpec:
    """Return the architecture that a recipe names: a preset, or that of a model folder.

    Raises:
        VegaError: It is neither.
    """
    return preset(base) if base in PRESETS else load_spec(resolve_model(base))


def model_spec(recipe: TrainRecipe) -> ModelSpec:
    """Return the architecture that a recipe trains, predicting what its objective says.

    Raises:
        VegaError: There is no such preset, and no readable model folder either.
    """
    spec, objective = find_spec(recipe.model.base), recipe.objective
    predicted = objective.prediction_type if isinstance(objective, DenoisingSpec) else None
    if predicted is None:
        return spec
    return spec.model_copy(update={"schedule": spec.schedule.model_copy(update={"prediction_type": predicted})})


def locate(reference: str, component: str) -> Path:
    """Return the weights file that a reference names for a component.

    Args:
        reference: A safetensors file, a component's folder, a model folder, a known model's name, a Hub id or
            `run:NAME`.
        component: Name of the component.

    Raises:
        MissingFile: There is none.
    """
    path = Path(reference).expanduser()
    if reference.startswith("run:"):
        path = run_weights(reference.removeprefix("run:"), component)
    elif reference in (*EMBEDDED, *TEACHERS) or (is_hub_id(reference) and not path.exists()):
        path = resolve_model(reference)
    if path.is_file():
        return path
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for folder in (path / component, path):
        for precision in precisions:
            if (folder / weight_filename(component, precision)).is_file():
                return folder / weight_filename(component, precision)
    raise MissingFile(f"{reference}: no {component} weights there; give a safetensors file or a model folder")


def read_component(component: str, path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a component's state dict from a file, cast; a file of several components names them (`unet.conv_in`)."""
    read = dict(read_tensors(path))
    prefix = component + "."
    own = {key.removeprefix(prefix): value for key, value in read.items() if key.startswith(prefix)}
    named = {from_published_key(component, key): value.to(dtype) for key, value in (own or read).items()}
    return {key: value for key, value in named.items() if key is not None}


def load_weights(module: nn.Module, component: str, path: Path) -> int:
    """Put a file's weights into a component; names and shapes must all fit.

    A file of several components names them, as in `unet.conv_in.weight`.

    Returns:
        The number of tensors.

    Raises:
        UnreadableModel: Something is missing, left over or of another shape; the message counts and names it.
    """
    weights = read_component(component, path)
    expected = module.state_dict()
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = [key for key in expected.keys() & weights.keys() if expected[key].shape != weights[key].shape]
    if missing or extra or shapes:
        fit = len(expected) - len(missing) - len(shapes)
        first = (missing or extra or sorted(shapes))[0]
        raise UnreadableModel(
            f"{path}: {fit} of {len(expected)} tensors fit {component}, {len(missing)} missing, {len(extra)} left "
            f"over, {len(shapes)} of another shape (first: {first}); choose weights of the recipe's architecture"
        )
    module.load_state_dict(weights)
    return len(weights)


def carved_unet(surgery: SurgerySpec, spec: ModelSpec, seed: int, inputs: dict[str, str]) -> nn.Module:
    """Return a U-Net whose first weights are carved out of a teacher's; hashes of what decides them go into `inputs`.

    Raises:
        MissingFile: The teacher's weights, their config or the map are not there.
        InvalidValue: The map does not fit teacher and student.
        UnreadableModel: The weights do not fit their config.
    """
    path = locate(surgery.teacher, "unet")
    config = path.parent / "config.json"
    teacher = unet_spec(read_json(config), str(config))
    layers = find_map(surgery.map, spec.unet, teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights", "unet"))
        unet, _ = carve(layers, spec.unet, teacher, read_component("unet", path))
    inputs["unet"] = digest([path])
    inputs["map"] = hashlib.sha256(layers.to_json().encode()).hexdigest()
    return unet


def with_own_autoencoder(spec: ModelSpec, weights: Path) -> ModelSpec:
    """Return a spec whose autoencoder is what the config beside a weights file says, where there is one."""
    config = weights.parent / "config.json"
    if not config.is_file():
        return spec
    return spec.model_copy(update={"autoencoder": autoencoder_spec(read_json(config), str(config))})


def warm_start(student: Student, reference: str) -> WeightReport:
    """Give every component of a student the weights of a model folder, a run or a file.

    A file is taken for the only component, or must name them: `unet.conv_in.weight`.

    Raises:
        MissingFile: A component's weights are not there.
        UnreadableModel: They do not fit.
    """
    counts = {}
    for name in student.component_names:
        counts[name] = load_weights(student.get_submodule(name), name, locate(reference, name))
    return WeightReport(reference, counts)


def publish_components(student: Student, folder: Path, step: int) -> None:
    """Write each component as a folder of config and fp32 safetensors that `from_pretrained` reads, in one go.

    Where it learns by adapters, one file with all of them is written, which `pipe.load_lora_weights` reads.

    Args:
        student: What to write, as its weights stand now.
        folder: The folder whose children are the components; replaced at the end. What a killed process left half
            written beside it goes.
        step: Of the run, which the folder then names.

    Raises:
        VegaError: It could not be written; what was there before is kept.
    """

    def write(where: Path) -> None:
        (where / PUBLISHED_STEP).write_text(json.dumps({"step": step}), encoding="utf-8")
        if student.by_adapters:
            save_lora(where, {name: student.get_submodule(name) for name in student.component_names})
            return
        for name in student.component_names:
            module = student.get_submodule(name)
            if isinstance(module, SceneChecker):
                (where / name).mkdir(parents=True)
                write_checker(where / name, module)
            else:
                write_weights(where, cast(WeightName, name), with_plain_table(module), ("fp32",))

    write_folder(folder, write)
    for half in (*folder.parent.glob(f".tmp-{folder.name}-*"), *folder.parent.glob(f".tmp-old-{folder.name}-*")):
        shutil.rmtree(half, ignore_errors=True)


def digest(paths: Sequence[Path]) -> str:
    """Return one SHA-256 over the contents of files."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
