"""When memory runs out: how that is told, and how many samples to take at once from then on."""

from __future__ import annotations

import gc
import resource

import torch

from vega_diffusion.errors import VegaError
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe


def smaller_micro_batch(recipe: TrainRecipe, size: int, processes: int, error: BaseException) -> int:
    """Return the next smaller number of samples that divides the recipe's micro-batch, so that a step stays the same.

    Raises:
        VegaError: There is none, or other processes would wait for one that does its step again.
    """
    least = 1 + len(recipe.data.prior) if isinstance(recipe.data, ImageLatentsSpec) else 1
    smaller = [n for n in range(least, size) if size % n == 0 and n % least == 0]
    said = str(error).splitlines()[0]
    if processes > 1:
        fewer = f"--set micro_batch_size={max(smaller, default=least)}"
        if isinstance(recipe.data, ImageLatentsSpec):  # buckets are cut into micro-batches: a saved run keeps its own
            fewer = f"{fewer}, as another run (--run-name) where states are saved"
            if recipe.activation_checkpointing is not True:
                fewer = f"--set activation_checkpointing=true, or {fewer}"
        raise VegaError(f"out of memory ({said}); processes go on together: run again with {fewer}") from error
    if not smaller:
        raise VegaError(
            f"out of memory with {size} samples at once ({said}); saved states are kept: run again with "
            "--set activation_checkpointing=true, model.lora, or a smaller data.resolution_px"
        ) from error
    return max(smaller)


def peak_gib(device: torch.device) -> float:
    """Return the most memory that this process has held so far: tensors on a GPU, everything on a CPU (GiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def free_memory() -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
