"""LoRA weights by the maps of one model, whatever layout they came in: whether a file fits, and conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vega_diffusion.errors import UnreadableModel
from vega_diffusion.models.lora_file import Adapter, LoraFile, read_lora
from vega_diffusion.models.lora_layouts import Layout, MapTree

LoraWeights = Mapping[str, Mapping[str, Adapter]]
"""Component -> neutral path of a map -> its adapter."""

_NAMED = 3


def fit_lora(lora: LoraFile, tree: MapTree) -> dict[str, dict[str, Adapter]]:
    """Return a file's adapters by the maps of a model.

    Raises:
        UnreadableModel: Not all fit; the message says how many do and names the first that do not.
    """
    found: dict[str, dict[str, Adapter]] = {}
    misfits: list[str] = []
    for name, adapter in lora.adapters.items():
        place = tree.find(name)
        if place is None:
            misfits.append(f"{name} (no such map)")
            continue
        component, path = place
        shape = tree.shapes[component][path]
        fitted = _fitted(adapter, shape)
        if fitted is None:
            misfits.append(f"{name} (for {_shape_of(adapter)}, the map is {list(shape)})")
        elif path in found.setdefault(component, {}):
            misfits.append(f"{name} (a second adapter of {component}.{path})")
        else:
            found[component][path] = fitted
    if misfits:
        fit, total = len(lora.adapters) - len(misfits), len(lora.adapters)
        more = f" and {len(misfits) - _NAMED} more" if len(misfits) > _NAMED else ""
        raise UnreadableModel(
            f"{lora.name}: {fit} of {total} adapters fit {tree.model}; not: {', '.join(misfits[:_NAMED])}{more}; "
            "name the model that it was trained on"
        )
    return found


def _fitted(adapter: Adapter, shape: tuple[int, ...]) -> Adapter | None:
    """Return an adapter in its map's shape, None if it fits another; old files hold linear maps as 1x1 convolutions."""
    if len(shape) == 2 and adapter.down.dim() == 4 and adapter.down.shape[2:] == (1, 1):
        adapter = replace(adapter, down=adapter.down.flatten(1), up=adapter.up.flatten(1))
    if len(shape) == 4 and shape[2:] == (1, 1) and adapter.down.dim() == 2:
        adapter = replace(adapter, down=adapter.down[..., None, None], up=adapter.up[..., None, None])
    return adapter if (adapter.up.shape[0], *adapter.down.shape[1:]) == shape else None


def _shape_of(adapter: Adapter) -> list[int]:
    return [adapter.up.shape[0], *adapter.down.shape[1:]]


def arrange(weights: LoraWeights, layout: Layout, tree: MapTree, metadata: Mapping[str, str] | None = None) -> LoraFile:
    """Return a LoRA file of a layout.

    Args:
        weights: That fit the model.
        layout: `diffusers`, or `kohya` in the names and with the metadata that sd-scripts writes for SDXL.
        tree: Of the model.
        metadata: Further entries for the header; a base or module that they state is kept.
    """
    named = {
        tree.kohya_names[component, path] if layout == "kohya" else f"{component}.{path}": adapter
        for component, maps in weights.items()
        for path, adapter in maps.items()
    }
    entries = dict(metadata or {})
    if layout == "kohya":
        # Programs take whatever begins with "sdxl_" for an SDXL LoRA.
        base = "sdxl_base_v1-0" if tree.model == "sdxl" else f"sdxl_{tree.model}"
        stated = {"ss_network_module": "networks.lora", "ss_base_model_version": base, "ss_sd_model_name": tree.model}
        entries = stated | entries
    return LoraFile(layout, named, entries)


def convert_layout(lora: LoraFile, layout: Layout, tree: MapTree) -> LoraFile:
    """Return a file in another layout: the same tensors bit for bit, the same alphas, the rest of its metadata kept.

    Raises:
        UnreadableModel: The file does not fit the model.
    """
    return arrange(fit_lora(lora, tree), layout, tree, lora.metadata)


def load_lora_for(path: Path, tree: MapTree) -> dict[str, dict[str, Adapter]]:
    """Read a LoRA file for a model; errors as in `read_lora` and `fit_lora`."""
    return fit_lora(read_lora(path), tree)
