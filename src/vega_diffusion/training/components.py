"""A run's components: built from the model's spec, filled with weights, and published again.

What does not live here: which components learn (student.py) and the layout of a whole model folder (models/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vega_diffusion.diffusion.randomness import derive_seed
from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel
from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.training.run_directory import run_weights
from vega_diffusion.training.state import save_tensors, write_folder
from vega_diffusion.training.student import Student

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")
FILE_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
VARIANT_NAMES = ("diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors")
TEXT_PREFIX = "text_model."


@dataclass(frozen=True)
class WeightReport:
    """What came of loading weights: component -> number of tensors that fitted (all of them: loading is strict)."""

    source: str
    tensors: dict[str, int]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count} of {count} tensors" for name, count in self.tensors.items())
        return f"first weights from {self.source}: {parts}"


def build_component(spec: ModelSpec, name: str, seed: int) -> nn.Module:
    """Build a component with fresh weights that depend on (seed, name) only.

    Raises:
        InvalidValue: The model has no such component.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights", name))
        match name:
            case "unet":
                return build_unet(spec.unet)
            case "vae":
                return build_autoencoder(spec.autoencoder)
            case "text_encoder":
                return build_text_encoder(spec.text_encoder)
            case "text_encoder_2" if spec.text_encoder_2 is not None:
                return build_text_encoder(spec.text_encoder_2)
            case _:
                raise InvalidValue("model.train", name, f"a component of {spec.name}", "remove it")


def locate(reference: str, component: str) -> Path:
    """Return the weights file that a reference names for a component.

    Args:
        reference: A safetensors file, a component's folder, a model folder, or `run:NAME`.
        component: Name of the component.

    Raises:
        MissingFile: There is none.
    """
    if reference.startswith("run:"):
        path = run_weights(reference.removeprefix("run:"), component)
    else:
        path = Path(reference).expanduser()
    if path.is_file():
        return path
    for folder in (path / component, path):
        for name in (*FILE_NAMES, *VARIANT_NAMES):
            if (folder / name).is_file():
                return folder / name
    raise MissingFile(f"{reference}: no {component} weights there; give a safetensors file or a model folder")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU in fp32.

    Raises:
        UnreadableModel: It is truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UnreadableModel(f"{path}: cannot be read ({error}); fetch or export the file again") from error


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> int:
    """Put weights into a module; names and shapes must all fit.

    Text encoders are published with the prefix `text_model.`, which transformers 5 has dropped; both are taken.

    Returns:
        The number of tensors.

    Raises:
        UnreadableModel: Something is missing, left over or of another shape; the message counts and names it.
    """
    expected = module.state_dict()
    if not weights.keys() & expected.keys():
        weights = {name.removeprefix(TEXT_PREFIX): value for name, value in weights.items()}
    if not weights.keys() & expected.keys():
        weights = {TEXT_PREFIX + name: value for name, value in weights.items()}
    weights = {n: v for n, v in weights.items() if not n.endswith("embeddings.position_ids") or n in expected}
    missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = [n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape]
    if missing or extra or shapes:
        fit = len(expected) - len(missing) - len(shapes)
        first = (missing or extra or sorted(shapes))[0]
        raise UnreadableModel(
            f"{source}: {fit} of {len(expected)} tensors fit, {len(missing)} missing, {len(extra)} left over, "
            f"{len(shapes)} of another shape (first: {first}); choose weights of the recipe's architecture"
        )
    module.load_state_dict(weights)
    return len(weights)


def warm_start(student: Student, reference: str) -> WeightReport:
    """Give every component of a student the weights of a model folder, a run or a file.

    A file is taken for the only component, or must name them: `unet.conv_in.weight`.

    Raises:
        MissingFile: A component's weights are not there.
        UnreadableModel: They do not fit.
    """
    counts = {}
    for name in student.component_names:
        path = locate(reference, name)
        weights = read_weights(path)
        own = {key.removeprefix(name + "."): value for key, value in weights.items() if key.startswith(name + ".")}
        counts[name] = load_weights(student.get_submodule(name), own or weights, str(path))
    return WeightReport(reference, counts)


def publish_components(student: Student, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write each component as a folder of config and safetensors that `from_pretrained` reads, in one go.

    Args:
        student: What to write, as its weights stand now.
        folder: The folder whose children are the components; replaced at the end.
        dtype: Of the written weights.

    Raises:
        VegaError: It could not be written; what was there before is kept.
    """

    def write(where: Path) -> None:
        for name in student.component_names:
            module = student.get_submodule(name)
            (where / name).mkdir()
            weights = {key: value.to(dtype) for key, value in module.state_dict().items()}
            save_config(module, where / name)
            if name.startswith("text_encoder"):
                save_tensors(where / name / "model.safetensors", published_text_names(weights))
            else:
                save_tensors(where / name / "diffusion_pytorch_model.safetensors", weights)

    write_folder(folder, write)


def published_text_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a text encoder's weights under the names that every reader of SDXL folders knows."""
    return {
        name if name.startswith((TEXT_PREFIX, "text_projection.")) else TEXT_PREFIX + name: value
        for name, value in weights.items()
    }


def save_config(module: nn.Module, folder: Path) -> None:
    """Write a component's `config.json` by its library's own function."""
    if hasattr(module, "save_config"):
        module.save_config(folder)  # type: ignore[operator]  (diffusers)
    else:
        module.config.save_pretrained(folder)  # type: ignore[union-attr, operator]  (transformers)


def digest(paths: Sequence[Path]) -> str:
    """Return one SHA-256 over the contents of files."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
