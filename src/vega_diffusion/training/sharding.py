"""Weights, gradients, moments and averages split over processes (torch's `fully_shard`), and put together again.

It works on a GPU (NCCL) and on a CPU (gloo), where accelerate's own FSDP would be DDP without a word. Weights are
gathered and gradients reduced in fp32, so a step is that of one process up to the order of sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.recipe import TrainRecipe

BLOCKS = frozenset({"Transformer2DModel", "ResnetBlock2D", "CLIPEncoderLayer"})
"""Classes whose weights are gathered together, used and let go; what is outside of them stays for the whole pass."""


def check_sharding(recipe: TrainRecipe, processes: int) -> None:
    """Refuse what sharding cannot do.

    Raises:
        InvalidValue: One process alone, fp16, compiled modules, or components that freeze on the way.
        VegaError: accelerate was told to shard.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise VegaError(
            "accelerate: its FSDP is not used (on a CPU it would be DDP without a word); launch several processes "
            "without it and set sharding = full in the recipe"
        )
    if recipe.sharding == "none":
        return
    if processes == 1:
        raise InvalidValue("sharding", "full", "none with one process", "start several with --processes")
    for field, value, set_to in (
        ("mixed_precision", recipe.mixed_precision, "fp16"),
        ("compile", recipe.compile, None),
        ("model.freeze_after", recipe.model.freeze_after, None),
    ):
        if value == set_to or (set_to is None and value):
            raise InvalidValue(field, value, "something else with sharding = full", "change one of the two")


def shard(module: nn.Module, device: torch.device, processes: int) -> FSDPModule:
    """Split a module's weights in place over all processes, block by block, and return it as what it has become."""
    mesh = init_device_mesh(device.type, (processes,))
    for child in list(module.modules()):
        if type(child).__name__ in BLOCKS:
            fully_shard(child, mesh=mesh)
    sharded = fully_shard(module, mesh=mesh)
    assert isinstance(sharded, FSDPModule)
    return sharded


@contextmanager
def without_reduction(module: FSDPModule) -> Iterator[None]:
    """Let gradients add up without being exchanged, as in accumulation."""
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Return tensors put together from all processes, which must all call this.

    Args:
        tensors: Name -> tensor, split or not.
        keep: Whether this process wants them; otherwise it only gives its parts.
    """
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return found


def split_like(reference: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor split as another one is; as it is where that one is whole or of another shape."""
    if not isinstance(reference, DTensor) or tensor.shape != reference.shape:
        return tensor.to(reference.device)
    return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)
