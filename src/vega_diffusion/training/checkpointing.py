"""Activation checkpointing by blocks: which blocks of a U-Net keep their inputs alone, chosen by the memory there is.

A block that keeps less computes its forward pass again on the way back. What each block saves and costs is counted on
the meta device from the real shapes (`planner`), so that only those blocks pay that have to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.recipe import TrainRecipe

SHARE = 0.9
"""Of the free memory: the rest is for what no plan counts, such as buffers of kernels."""


@dataclass(frozen=True)
class BlockCost:
    """What checkpointing one block does for a micro-batch: bytes that are not kept, FLOPs that are done again."""

    saved_bytes: float
    flops: float


def blocks_of(unet: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks that can be checkpointed."""
    names = [f"down_blocks.{number}" for number in range(len(unet.get_submodule("down_blocks")._modules))]
    names += ["mid_block"] if getattr(unet, "mid_block", None) is not None else []
    names += [f"up_blocks.{number}" for number in range(len(unet.get_submodule("up_blocks")._modules))]
    return tuple(names)


def enable(unet: nn.Module, chosen: bool | tuple[str, ...]) -> None:
    """Let all blocks, or the named ones, compute their activations again on the way back.

    Raises:
        InvalidValue: A name is no block.
    """
    there = blocks_of(unet)
    again = partial(checkpoint, use_reentrant=False)
    for name in there if chosen is True else chosen or ():
        if name not in there:
            raise InvalidValue("activation_checkpointing", name, f"blocks: {', '.join(there)}", "change the list")
        for module in unet.get_submodule(name).modules():
            if hasattr(module, "gradient_checkpointing"):
                block: Any = module
                block.gradient_checkpointing, block._gradient_checkpointing_func = True, again


def choose(costs: Mapping[str, BlockCost], excess_bytes: float) -> tuple[str, ...]:
    """Return the blocks that save at least so many bytes with the least work done again; all of them if none do."""
    best: tuple[float, tuple[str, ...]] | None = None
    for size in range(len(costs) + 1):
        for some in combinations(costs, size):
            if sum(costs[name].saved_bytes for name in some) >= excess_bytes:
                work = sum(costs[name].flops for name in some)
                if best is None or work < best[0]:
                    best = work, some
    return best[1] if best is not None else tuple(costs)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free now, on an accelerator or in the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def resolved(
    recipe: TrainRecipe, device: torch.device, needed: Callable[[TrainRecipe], tuple[float, dict[str, BlockCost]]]
) -> TrainRecipe:
    """Return the recipe with `activation_checkpointing = "auto"` turned into the blocks that the free memory asks for.

    Args:
        recipe: The run.
        device: Where it will run.
        needed: Returns the bytes that a run takes without checkpointing, and what each block saves.
    """
    if recipe.activation_checkpointing != "auto":
        return recipe
    total, costs = needed(recipe)
    excess = total - SHARE * free_bytes(device)
    chosen = choose(costs, excess) if excess > 0 else ()
    return recipe.model_copy(update={"activation_checkpointing": chosen or False})
