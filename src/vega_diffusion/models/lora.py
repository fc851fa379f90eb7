"""Low-rank adapters in a network: where they go, their weights as stock diffusers stores them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue, UnreadableModel
from vega_diffusion.models.lora_file import Adapter, LoraFile, read_lora, write_lora
from vega_diffusion.models.lora_forward import AdaptedLinear
from vega_diffusion.models.lora_layouts import neutral_path
from vega_diffusion.specs.lora import LORA_FILE, LoraSpec

ADAPTER = "default"


def lora_targets(module: nn.Module, spec: LoraSpec) -> list[str]:
    """Return the names of the maps that get adapters, from the module tree itself.

    Raises:
        InvalidValue: No map's name ends so; the message says which endings there are.
    """
    maps = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    found = [name for name in maps if any(_ends(name, target) for target in spec.targets)]
    if not found:
        there = ", ".join(sorted({_ending(name) for name in maps}))
        raise InvalidValue("model.lora.targets", list(spec.targets), f"endings of names: {there}", "name some of them")
    return found


def add_lora(module: nn.Module, spec: LoraSpec, seed: int) -> int:
    """Put adapters into a network in place; it computes the same as before, and they alone learn.

    Args:
        module: A U-Net or a text encoder.
        spec: Of the adapters.
        seed: Of A; B is zero.

    Returns:
        How many adapters there are.

    Raises:
        InvalidValue: No map's name ends as the spec says.
    """
    targets = lora_targets(module, spec)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.rank if spec.alpha is None else spec.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=spec.dropout,
        use_dora=spec.dora,
    )
    if not spec.dora and not spec.dropout:  # others are computed by PEFT alone
        config._register_custom_module({nn.Linear: AdaptedLinear})
    module.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, ADAPTER)
    # diffusers asks for these when a pipeline saves or lists adapters.
    module.peft_config = {ADAPTER: config}  # type: ignore[assignment]
    module._hf_peft_config_loaded = True  # type: ignore[assignment]
    return len(targets)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return ".lora_" in f".{name}"


def save_lora(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Write the adapters of networks into one file that `pipe.load_lora_weights` reads, scale and targets included.

    Text encoders get the names that files have held all along, whatever the installed transformers calls them.

    Args:
        folder: Is made; the file in it is `pytorch_lora_weights.safetensors`.
        networks: `unet`, `text_encoder`, `text_encoder_2`: those that have adapters.
    """
    adapters = {
        f"{component}.{path}": adapter
        for component, network in networks.items()
        for path, adapter in adapters_of(network, component).items()
    }
    write_lora(folder / LORA_FILE, LoraFile("diffusers", adapters))


def adapters_of(network: nn.Module, component: str) -> dict[str, Adapter]:
    """Return an adapted network's adapters by the neutral paths of their maps, fp32."""
    config: Any = network.peft_config[ADAPTER]  # type: ignore[index]
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora_tensors(network).items():
        path, _, role = name.removesuffix(".weight").rpartition(".")
        parts.setdefault(neutral_path(component, path), {})[role] = tensor
    found = {}
    for path, given in parts.items():
        magnitude = given.get("lora_magnitude_vector")
        length = None if magnitude is None else magnitude.flatten()
        found[path] = Adapter(given["lora_A"], given["lora_B"], float(config.lora_alpha), length)
    return found


def lora_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return an adapted network's own adapter weights, fp32, by PEFT's names."""
    found = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in found.items()}


def load_lora(network: nn.Module, file: Path, component: str) -> None:
    """Give an adapted network the weights of a file that `save_lora` wrote.

    Raises:
        UnreadableModel: The file holds other adapters.
    """
    prefix = f"{component}."
    read = read_lora(file)
    given = {name.removeprefix(prefix): one for name, one in read.adapters.items() if name.startswith(prefix)}
    if {path: _traits(one) for path, one in given.items()} != {
        path: _traits(one) for path, one in adapters_of(network, component).items()
    }:
        raise UnreadableModel(f"{file}: holds other adapters than this {component} has; name the file of its own run")
    tensors = {}
    for name, own in lora_tensors(network).items():
        path, _, role = name.removesuffix(".weight").rpartition(".")
        adapter = given[neutral_path(component, path)]
        value = {"lora_A": adapter.down, "lora_B": adapter.up, "lora_magnitude_vector": adapter.magnitude}[role]
        assert value is not None, "compared above"
        tensors[name] = value.reshape(own.shape)
    set_peft_model_state_dict(network, tensors, adapter_name=ADAPTER)


def _traits(adapter: Adapter) -> tuple[object, ...]:
    return adapter.up.shape, adapter.down.shape, adapter.magnitude is None


def _ends(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _ending(name: str) -> str:
    """Return the part of a map's name that tells its role: without numbers of layers and blocks before it."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]
