"""The denoising loss of U-Nets on samples that training does not see: one fixed set of scenes, timesteps and noise.

It orders networks that are trained alike, cheaply; what pictures show is told by `evaluation` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from vega_diffusion.data.batches import Batch, BatchSource
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.denoising import Denoising

SEED = 777
CPU = torch.device("cpu")


@torch.no_grad()
def held_out_losses(
    unets: Mapping[str, Callable[[], nn.Module]],
    task: Denoising,
    source: BatchSource,
    num_samples: int,
    batch_size: int,
    first_position: int = 0,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Return the mean weighted loss of each U-Net over the same samples.

    Args:
        unets: Name -> what returns the network; one is in memory at a time.
        task: The denoising loss.
        source: Samples, best of scenes that no run has.
        num_samples: How many; a multiple of `batch_size`.
        batch_size: How many at once.
        first_position: Of the source.
        device: Where the networks run; `task` is moved there.
    """
    task.to(device)
    starts = range(first_position, first_position + num_samples, batch_size)
    parts = [range(start, start + batch_size) for start in starts]
    batches = [(source.load(part).to(device), part) for part in parts]
    found = {}
    for name, load in unets.items():
        student = nn.ModuleDict({"unet": load().eval()}).to(device)
        found[name] = sum(_total(task, student, batch, positions) for batch, positions in batches) / num_samples
    return found


def _total(task: Denoising, student: nn.Module, batch: Batch, positions: range) -> float:
    device = batch.tensors["latents"].device
    return float(task(student, batch, PositionRng(SEED, positions, device)).total) * len(positions)
