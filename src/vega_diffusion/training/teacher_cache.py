"""What teachers predict for a run's fixed samples, computed once and kept on disk by what each sample is made of.

A store is named by a hash of all that decides its content beside the samples: noise schedule, seed, the teacher's
weights and precision, the text encoders. A learning rate is not among it. Rows are found by the samples' own keys
(`content_cache`), so one changed picture is asked about alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vega_diffusion.data.batches import LatentSource
from vega_diffusion.data.content_cache import ContentCache
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.objectives.denoising import Denoising
from vega_diffusion.objectives.teachers import Teacher

BATCH = 64


@torch.no_grad()
def open_outputs(
    root: Path,
    identity: Mapping[str, str | int],
    teacher: Teacher,
    task: Denoising,
    source: LatentSource,
    seed: int,
    num_samples: int,
    device: torch.device,
) -> Callable[[Sequence[int]], Tensor]:
    """Return a function from sample positions to a teacher's predictions, computing those that are not there yet.

    The teacher is loaded only where something is missing, and gone when this returns. Positions that are asked for at
    once must have latents of one shape.

    Args:
        root: Folder of all stores.
        identity: What decides the rows beside the samples: weights of teacher and text encoders, schedule.
        teacher: Who is asked.
        task: Draws the questions, as training will.
        source: The samples.
        seed: The run's.
        num_samples: How many.
        device: Where to ask.

    Raises:
        VegaError: The disk is full; what was computed is kept.
    """
    whole = dict(identity) | {"format": 2, "seed": seed, "dtype": teacher.spec.dtype}
    loaded: list[nn.Module] = []

    def make(positions: Mapping[str, int], keys: Sequence[str]) -> np.ndarray:
        if not loaded:
            loaded.append(teacher.load().to(device))
        (unet,) = loaded
        part = [positions[key] for key in keys]
        rng = PositionRng(derive_seed(seed, "objective"), part, device)
        question = task.question(nn.ModuleDict(), source.load(part).to(device), rng)
        return question.to(next(unet.parameters()).dtype).ask(unet).cpu().numpy()

    by_shape: dict[tuple[int, ...], dict[str, int]] = {}
    for position, sample in enumerate(source.keys(range(num_samples))):
        key = hashlib.sha256(sample.key.encode()).hexdigest()
        by_shape.setdefault(sample.shape, {})[key] = position
    # Position -> store and row: numbers alone stay in memory, as there may be millions.
    stores: list[np.ndarray] = []
    which, where = np.zeros(num_samples, np.int16), np.zeros(num_samples, np.int64)
    for shape, positions in by_shape.items():
        store = ContentCache(root, whole | {"shape": "x".join(map(str, shape))}, shape)
        with tqdm(unit="sample", desc=f"outputs of {teacher.spec.name}", file=sys.stderr, leave=False) as bar:

            def progress(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            rows, numbers = store.rows(list(positions), partial(make, positions), BATCH, progress)
        here = list(positions.values())
        which[here], where[here] = len(stores), numbers
        stores.append(rows)
    return lambda wanted: torch.from_numpy(np.stack([stores[which[one]][where[one]] for one in wanted])).float()
