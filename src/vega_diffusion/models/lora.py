"""Low-rank adapters in a network: where they go, their weights as stock diffusers stores them, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue, UnreadableModel
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

    Args:
        folder: Is made; the file in it is `pytorch_lora_weights.safetensors`.
        networks: `unet`, `text_encoder`, `text_encoder_2`: those that have adapters.
    """
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    given: dict[str, Any] = {}
    for name, network in networks.items():
        given[f"{name}_lora_layers"] = lora_tensors(network)
        described = network.peft_config[ADAPTER].to_dict()  # type: ignore[index]
        # PEFT keeps targets in a set, whose order differs from process to process.
        given[f"{name}_lora_adapter_metadata"] = described | {"target_modules": sorted(described["target_modules"])}
    StableDiffusionXLPipeline.save_lora_weights(str(folder), weight_name=LORA_FILE, **given)
    _sort_metadata(folder / LORA_FILE)


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
    tensors = {name.removeprefix(prefix): t for name, t in load_file(file).items() if name.startswith(prefix)}
    wanted = lora_tensors(network)
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in wanted.items()}:
        raise UnreadableModel(f"{file}: holds other adapters than this {component} has; name the file of its own run")
    set_peft_model_state_dict(network, tensors, adapter_name=ADAPTER)


def _sort_metadata(file: Path) -> None:
    """Put a safetensors file's metadata into order in place, since its writer shuffles them: equal adapters, equal files."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) != length:
            raise AssertionError(f"{file}: the header changed its length")
        stream.seek(8)
        stream.write(text)


def _ends(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _ending(name: str) -> str:
    """Return the part of a map's name that tells its role: without numbers of layers and blocks before it."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]
