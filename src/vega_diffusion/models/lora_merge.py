"""LoRAs and whole networks: adapters merged into weights, a folder with LoRAs inside, a LoRA out of two folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.checkpoint import load_component
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.digest import file_digest, model_digest
from vega_diffusion.models.export import check_replaceable, new_folder, write_description, write_weights
from vega_diffusion.models.layout import (
    PIPELINE_COMPONENTS,
    SCHEDULER_CONFIG,
    VEGA_JSON,
    WEIGHT_STEMS,
    Precision,
    find_weights,
    read_json,
    weight_filename,
)
from vega_diffusion.models.lora_algebra import changed, extract
from vega_diffusion.models.lora_file import Adapter
from vega_diffusion.models.lora_layouts import ADAPTABLE, MapTree, maps_of
from vega_diffusion.models.lora_weights import LoraWeights, load_lora_for
from vega_diffusion.models.tiny_folder import take_tiny_along
from vega_diffusion.specs.architecture import ModelSpec

_CARD = """---
library_name: diffusers
tags: [text-to-image, stable-diffusion-xl, lora]
---

# {name}

{base} with {loras} merged into its weights. Licence and limits are those of {base} and of every LoRA.
"""


@dataclass(frozen=True)
class WeightedFile:
    """A LoRA file and how strongly it acts."""

    path: Path
    weight: float = 1.0


def merge_adapters(
    module: nn.Module, component: str, parts: Sequence[tuple[Mapping[str, Adapter], float]]
) -> dict[nn.Module, nn.Parameter]:
    """Add adapters to a network's weights in place; return the parameters that stood there before.

    Args:
        module: A network.
        component: Its name in the pipeline.
        parts: Adapters by neutral path, which fit, and their weights.

    Returns:
        Every changed map -> its old parameter; `restore` puts them back.
    """
    before = {}
    for one, parameter in merged_weights(module, component, parts).items():
        before[one], one.weight = one.weight, parameter
    return before


def merged_weights(
    module: nn.Module, component: str, parts: Sequence[tuple[Mapping[str, Adapter], float]]
) -> dict[nn.Module, nn.Parameter]:
    """Return the weights of every map that adapters change, as they would be with them; arguments as above."""
    maps, merged = maps_of(module, component), {}
    for path in {path: None for adapters, strength in parts if strength for path in adapters}:
        own = [(adapters[path], strength) for adapters, strength in parts if path in adapters]
        old = maps[path].weight
        with torch.no_grad():
            merged[maps[path]] = nn.Parameter(changed(old.detach(), own), requires_grad=old.requires_grad)
    return merged


def restore(before: Mapping[nn.Module, nn.Parameter]) -> None:
    """Put back the parameters that `merge_adapters` returned: the same objects, hence the same bits."""
    for one, parameter in before.items():
        one.weight = parameter


def merge_model(
    folder: Path,
    model: str,
    files: Sequence[WeightedFile],
    output: Path,
    precisions: Sequence[Precision] | None = None,
    force: bool = False,
) -> tuple[ModelSpec, int]:
    """Write a model folder with LoRAs merged into its weights; it appears complete or not at all.

    Sums are taken in float32 and rounded once. What no LoRA touches is taken over.

    Args:
        folder: The model folder.
        model: What to call it in the card and in `vega.json`.
        files: LoRA files of either layout, with weights; all must fit.
        output: Where the merged model goes.
        precisions: Weight files; those of the model unless given.
        force: Replace an `output` that is there.

    Returns:
        The spec as written, and how many maps were changed.

    Raises:
        VegaError: The model or a file cannot be read, a file does not fit, or `output` is there or cannot be written.
    """
    check_output(output, [folder, *(file.path for file in files)], force)
    check_replaceable(output, "OUT")
    spec = load_spec(folder).model_copy(update={"name": output.resolve().name})
    tree = MapTree.of_spec(spec, Path(model).name or model)
    parts = [(load_lora_for(file.path, tree), file.weight) for file in files]
    wanted = precisions or (find_weights(folder, "unet").precision,)
    paths = {(name, path) for weights, _ in parts for name, maps in weights.items() for path in maps}
    with new_folder(output) as place:
        for component in PIPELINE_COMPONENTS:
            own = [(weights[component], strength) for weights, strength in parts if component in weights]
            kept = all((folder / component / weight_filename(component, one)).is_file() for one in wanted)
            if component == "scheduler":
                continue
            if component in WEIGHT_STEMS and (own or not kept):
                module = load_component(folder, spec, component, torch.float32)
                if own:
                    merge_adapters(module, component, own)
                write_weights(place, component, module, wanted)  # type: ignore[arg-type]
            else:
                _take_over(folder / component, place / component, component, wanted)
        take_tiny_along(folder, place)
        card = _CARD.format(name=spec.name, base=model, loras=", ".join(f"`{file.path.name}`" for file in files))
        write_description(place, spec, _provenance(folder, model, files), card)
        # Programs may have put more into it than a spec says.
        shutil.copyfile(folder / SCHEDULER_CONFIG, place / SCHEDULER_CONFIG)
    return spec, len(paths)


def check_output(output: Path, sources: Sequence[Path], force: bool) -> None:
    """Refuse to write over what is there, unless asked to, and over what is read in any case.

    Args:
        output: A file or a folder, which is replaced with all that is in it.
        sources: Files and folders that are read.
        force: Whether what is there may be replaced.

    Raises:
        InvalidValue: The output is there, or is or holds what is read.
    """
    place = output.resolve()
    for source in sources:
        if output.exists() and source.resolve() == place:
            raise InvalidValue("OUT", str(output), "another place than what is read", "choose another place")
        if output.exists() and source.resolve().is_relative_to(place):
            allowed = f"a place that does not hold {str(source)!r}, which is read"
            raise InvalidValue("OUT", str(output), allowed, "choose another place")
    if output.exists() and not force:
        raise InvalidValue("OUT", str(output), "a place where nothing is", "choose another place or add --force")


def _take_over(source: Path, target: Path, component: str, precisions: Sequence[Precision]) -> None:
    """Copy a component's folder, of its weights only those that are wanted."""
    target.mkdir()
    weights = {weight_filename(component, one) for one in precisions} if component in WEIGHT_STEMS else set()
    for path in sorted(source.iterdir()):
        is_weight = ".safetensors" in path.name or path.suffix in (".bin", ".msgpack", ".onnx")
        if path.is_file() and (not is_weight or path.name in weights):
            shutil.copyfile(path, target / path.name)


def _provenance(folder: Path, model: str, files: Sequence[WeightedFile]) -> dict[str, object]:
    """Say what was merged into what, and how the base came about as far as it tells."""
    base = read_json(folder / VEGA_JSON).get("provenance", {}) if (folder / VEGA_JSON).is_file() else {}
    loras = [{"file": one.path.name, "sha256": file_digest(one.path), "weight": one.weight} for one in files]
    return {"merged": {"model": model, "model_digest": model_digest(folder), "loras": loras}, "base": base}


@dataclass(frozen=True)
class Extraction:
    """A LoRA out of the difference of two models.

    Attributes:
        weights: The adapters.
        kept: `component.path` -> (share of the energy that the adapter keeps, energy of the difference).
        left_out: Names of differing tensors that no adapter can hold: norms, biases, embeddings.
    """

    weights: LoraWeights
    kept: Mapping[str, tuple[float, float]]
    left_out: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the energy of all maps' differences that is kept."""
        total = sum(energy for _, energy in self.kept.values())
        return sum(share * energy for share, energy in self.kept.values()) / total if total else 1.0


def extract_lora(
    base: Path, tuned: Path, rank: int, on_map: Callable[[str], None] | None = None
) -> tuple[Extraction, MapTree]:
    """Return the LoRA that brings one model closest to another, by singular values of the differences of weights.

    Args:
        base: A model folder.
        tuned: A model folder of the same shape.
        rank: Of every adapter, at most.
        on_map: Called with the name of every map before its decomposition.

    Raises:
        InvalidValue: The models have different shapes, or do not differ.
        VegaError: One cannot be read.
    """
    first, second = load_spec(base), load_spec(tuned)
    for name in ADAPTABLE:
        if getattr(first, name) != getattr(second, name):
            raise InvalidValue("TUNED", str(tuned), f"a model with the {name} of {base}", "choose two of one shape")
    weights: dict[str, dict[str, Adapter]] = {}
    kept: dict[str, tuple[float, float]] = {}
    left_out: list[str] = []
    for component in ADAPTABLE:
        old, new = (load_component(*one, component, torch.float32) for one in ((base, first), (tuned, second)))
        left_out += _unadaptable(old, new, component)
        for path, difference in _differences(old, new, component):
            if on_map is not None:
                on_map(f"{component}.{path}")
            one = extract(difference, rank)
            weights.setdefault(component, {})[path] = one.adapter
            kept[f"{component}.{path}"] = (one.kept / one.energy, one.energy)
    if not weights:
        raise InvalidValue("TUNED", str(tuned), f"a model whose maps differ from those of {base}", "choose another one")
    return Extraction(weights, kept, tuple(left_out)), MapTree.of_spec(first, base.resolve().name)


def _differences(old: nn.Module, new: nn.Module, component: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the maps whose weights differ, and by how much, float32."""
    after = maps_of(new, component)
    for path, one in maps_of(old, component).items():
        difference = (after[path].weight - one.weight).detach()
        if difference.any():
            yield path, difference


def _unadaptable(old: nn.Module, new: nn.Module, component: str) -> list[str]:
    """Return the names of differing parameters that are no weight of a map."""
    maps = {f"{name}.weight" for name, one in old.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}
    after = dict(new.named_parameters())
    rest = {name: one for name, one in old.named_parameters() if name not in maps}
    return [f"{component}.{name}" for name, one in rest.items() if not torch.equal(one, after[name])]
