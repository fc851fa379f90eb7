"""What LoRA files call the maps of a model: diffusers' paths and kohya's flat names. Names and shapes, no weights.

Everything follows from the module tree of the networks at hand, so any depth and width, with or without a mid block,
has its names; there is no table for SDXL. Reading and writing of files is `lora_file`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from vega_diffusion.models.build import build_component
from vega_diffusion.specs.architecture import ModelSpec

Layout = Literal["diffusers", "kohya"]
LAYOUTS: tuple[Layout, ...] = ("diffusers", "kohya")
ADAPTABLE = ("unet", "text_encoder", "text_encoder_2")
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_TEXT_MODEL = "text_model."

# What SDXL's first implementation (SGM) calls single layers outside its numbered blocks, and parts of a resnet.
_SGM_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_SGM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def neutral_path(component: str, name: str) -> str:
    """Return a map's name as this package writes it down: text encoders without `text_model.`.

    transformers 5.6 dropped that level from one of the two classes; files hold it, modules may or may not.
    """
    return name if component == "unet" else name.removeprefix(_TEXT_MODEL)


def published_path(component: str, path: str) -> str:
    """Return the name under which files hold a map: text encoders with `text_model.`, but for the last projection."""
    return path if component == "unet" or path == "text_projection" else f"{_TEXT_MODEL}{path}"


def maps_of(module: nn.Module, component: str) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the linear maps and convolutions of a network by neutral path: what a LoRA can change."""
    return {
        neutral_path(component, name): child
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d)
    }


def sgm_names(paths: Collection[str]) -> dict[str, str]:
    """Return for the layers of a U-Net their names in SDXL's first implementation, which kohya's files use.

    Blocks are counted as that implementation builds them: going down, one block a resnet (with the attention layer
    after it) and one a change of resolution; going up, one block a resnet, the change of resolution inside the last.

    Args:
        paths: Names of all layers, or of all maps, as diffusers has them.
    """
    homes = _SGM_SINGLE | _sgm_down(paths) | _sgm_middle(paths) | _sgm_up(paths)
    found = {}
    for path in paths:
        parts = path.split(".")
        home = next(name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in homes)
        rest = path.removeprefix(home).removeprefix(".")
        if ".resnets." in home:
            rest = _SGM_RESNET[rest]
        if ".downsamplers." in home:
            rest = "op"
        found[path] = f"{homes[home]}.{rest}" if rest else homes[home]
    return found


def _kinds(paths: Collection[str], side: str) -> list[tuple[str, dict[str, set[int]]]]:
    """Return the blocks of one side of a U-Net in order: name -> kind of layer -> its numbers."""
    blocks: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for path in paths:
        if match := re.match(rf"({side}(?:\.\d+)?)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", path):
            blocks[match[1]][match[2]].add(int(match[3]))
    return sorted(blocks.items(), key=lambda block: [int(part) for part in block[0].split(".")[1:]])


def _sgm_down(paths: Collection[str]) -> dict[str, str]:
    homes, number = {}, 1
    for block, kinds in _kinds(paths, "down_blocks"):
        for index in sorted(kinds["resnets"]):
            homes[f"{block}.resnets.{index}"] = f"input_blocks.{number}.0"
            homes[f"{block}.attentions.{index}"] = f"input_blocks.{number}.1"
            number += 1
        if kinds["downsamplers"]:
            homes[f"{block}.downsamplers.0"] = f"input_blocks.{number}.0"
            number += 1
    return homes


def _sgm_middle(paths: Collection[str]) -> dict[str, str]:
    homes = {}
    for block, kinds in _kinds(paths, "mid_block"):
        homes |= {f"{block}.resnets.{index}": f"middle_block.{2 * index}" for index in kinds["resnets"]}
        homes |= {f"{block}.attentions.{index}": f"middle_block.{2 * index + 1}" for index in kinds["attentions"]}
    return homes


def _sgm_up(paths: Collection[str]) -> dict[str, str]:
    homes, number = {}, 0
    for block, kinds in _kinds(paths, "up_blocks"):
        for index in sorted(kinds["resnets"]):
            homes[f"{block}.resnets.{index}"] = f"output_blocks.{number}.0"
            homes[f"{block}.attentions.{index}"] = f"output_blocks.{number}.1"
            number += 1
        place = 2 if max(kinds["resnets"]) in kinds["attentions"] else 1
        homes[f"{block}.upsamplers.0"] = f"output_blocks.{number - 1}.{place}"
    return homes


@dataclass(frozen=True)
class MapTree:
    """The maps of one model that a LoRA can change.

    Attributes:
        model: What to call the model in messages and in the metadata of files.
        shapes: Component -> neutral path of a map -> shape of its weight.
    """

    model: str
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    @classmethod
    def of(cls, model: str, modules: Mapping[str, nn.Module]) -> MapTree:
        """Return the tree of networks, those that a LoRA can change among them."""
        named = {name: maps_of(module, name) for name, module in modules.items() if name in ADAPTABLE}
        return cls(
            model, {name: {path: tuple(one.weight.shape) for path, one in maps.items()} for name, maps in named.items()}
        )

    @classmethod
    def of_spec(cls, spec: ModelSpec, model: str | None = None) -> MapTree:
        """Return the tree of an architecture; nothing is allocated."""
        names = ADAPTABLE if spec.text_encoder_2 is not None else ADAPTABLE[:2]
        with torch.device("meta"):
            return cls.of(model or spec.name, {name: build_component(spec, name) for name in names})

    @cached_property
    def kohya_names(self) -> dict[tuple[str, str], str]:
        """(component, path) -> the name that sd-scripts writes for an SDXL-shaped model."""
        found = {}
        for component, maps in self.shapes.items():
            inner = sgm_names(maps) if component == "unet" else {path: published_path(component, path) for path in maps}
            for path, name in inner.items():
                found[component, path] = KOHYA_PREFIXES[component] + name.replace(".", "_")
        return found

    @cached_property
    def _by_name(self) -> dict[str, tuple[str, str]]:
        """Every name under which files hold a map, in whichever layout."""
        found = {}
        for component, maps in self.shapes.items():
            # kohya's names with diffusers' blocks, and those of exports that lost `text_model.`
            spellings = [KOHYA_PREFIXES[component]] + (["lora_te_"] if component == "text_encoder" else [])
            for path in maps:
                for name in (path, published_path(component, path)):
                    found |= {prefix + name.replace(".", "_"): (component, path) for prefix in spellings}
                found[f"{component}.{path}"] = (component, path)
        return found | {name: place for place, name in self.kohya_names.items()}

    def find(self, name: str) -> tuple[str, str] | None:
        """Return component and path of the map that a file calls so; None when this model has none of that name."""
        return self._by_name.get(name)
