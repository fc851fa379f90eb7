"""What teachers say of a run's fixed samples, computed once and kept on disk by what each sample is made of.

A store is named by a hash of all that decides its content beside the samples: noise schedule, seed, the teacher's
weights and precision, the text encoders, which inner states are kept. A learning rate is not among it. Rows are found
by the samples' own keys (`content_cache`), so one changed picture is asked about alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite, prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vega_diffusion.data.batches import LatentSource
from vega_diffusion.data.content_cache import ContentCache
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.errors import VegaError
from vega_diffusion.objectives.denoising import Denoising
from vega_diffusion.objectives.features import captured
from vega_diffusion.objectives.teachers import Recalled, Teacher
from vega_diffusion.specs.architecture import ModelSpec

BATCH = 64
PREDICTION = ""
"""What a prediction is called among inner states, which have the names of their modules."""
# Of configs and shapes alone; a network without values takes seconds to go through (chains of runs ask again).
_known_shapes: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}


def answer_shapes(teacher: Teacher, spec: ModelSpec, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that a teacher says of one sample, in the order in which it is kept; reads no weights.

    Args:
        teacher: Who is asked.
        spec: The student's model, whose text encoders the teacher hears.
        latents: Shape of one sample's, `(C, H, W)`.
    """
    network = teacher.outline()
    with torch.device("meta"):
        text = torch.zeros(1, spec.text_encoder.max_position_embeddings, spec.unet.cross_attention_dim)
        added = {"time_ids": torch.zeros(1, 6)}
        if spec.text_encoder_2 is not None:
            added["text_embeds"] = torch.zeros(1, spec.text_encoder_2.projection_dim)
        x_t, timesteps = torch.zeros(1, *latents), torch.zeros(1, dtype=torch.int64)
    dtype = next(network.parameters()).dtype
    names = _state_names(teacher)
    asked = (str(network.config), *names, *(str(tuple(one.shape)) for one in (x_t, text, *added.values())))
    if asked in _known_shapes:
        return dict(_known_shapes[asked])
    with torch.no_grad(), captured(network, names) as states:
        prediction = network(
            x_t.to(dtype),
            timesteps,
            encoder_hidden_states=text.to(dtype),
            added_cond_kwargs={name: value.to(dtype) for name, value in added.items()},
        ).sample
    said = {PREDICTION: prediction, **{name: states[name] for name in names}}
    _known_shapes[asked] = {name: tuple(value.shape[1:]) for name, value in said.items()}
    return dict(_known_shapes[asked])


@torch.no_grad()
def open_outputs(
    root: Path,
    identity: Mapping[str, str | int],
    teacher: Teacher,
    task: Denoising,
    source: LatentSource,
    spec: ModelSpec,
    seed: int,
    positions: range,
    device: torch.device,
) -> Callable[[Sequence[int]], Recalled]:
    """Return a function from sample positions to what a teacher says of them, computing what is not there yet.

    The teacher is loaded only where something is missing, and gone when this returns. Positions that are asked for at
    once must have latents of one shape. Numbers are kept in fp16.

    Args:
        root: Folder of all stores.
        identity: What decides the rows beside the samples: weights of teacher and text encoders, schedule.
        teacher: Who is asked: for its prediction, and for the states of its `pairs`.
        task: Draws the questions, as training will.
        source: The samples.
        spec: The student's model.
        seed: The run's.
        positions: Of the samples.
        device: Where to ask.

    Raises:
        VegaError: The disk is full (what was computed is kept), or a teacher says what fp16 cannot hold.
    """
    names = _state_names(teacher)
    whole = dict(identity) | {"format": 2, "seed": seed, "dtype": teacher.spec.dtype}
    if names:
        whole["states"] = " ".join(names)
    loaded: list[nn.Module] = []

    def make(known: Mapping[str, int], keys: Sequence[str]) -> np.ndarray:
        if not loaded:
            loaded.append(teacher.load().to(device))
        (unet,) = loaded
        part = [known[key] for key in keys]
        rng = PositionRng(derive_seed(seed, "objective"), part, device)
        question = task.question(nn.ModuleDict(), source.load(part).to(device), rng)
        with captured(unet, names) as states:
            prediction = question.to(next(unet.parameters()).dtype).ask(unet, states)
        said = {PREDICTION: prediction, **{name: states[name] for name in names}}
        _check_fits(teacher, said, part)
        return torch.cat([value.float().flatten(1) for value in said.values()], dim=1).cpu().numpy()

    by_shape: dict[tuple[int, ...], dict[str, int]] = {}
    for position, sample in zip(positions, source.keys(positions), strict=True):
        key = hashlib.sha256(sample.key.encode()).hexdigest()
        by_shape.setdefault(sample.shape, {})[key] = position
    # Position -> store and row: numbers alone stay in memory, as there may be millions.
    stores: list[tuple[np.ndarray, Mapping[str, tuple[int, ...]]]] = []
    which, where = np.zeros(len(positions), np.int16), np.zeros(len(positions), np.int64)
    for shape, known in by_shape.items():
        said = answer_shapes(teacher, spec, shape)
        store = ContentCache(root, whole | {"shape": "x".join(map(str, shape))}, (sum(map(prod, said.values())),))
        with tqdm(unit="sample", desc=f"outputs of {teacher.spec.name}", file=sys.stderr, leave=False) as bar:

            def progress(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            rows, numbers = store.rows(list(known), partial(make, known), BATCH, progress)
        here = np.fromiter(known.values(), np.int64) - positions.start
        which[here], where[here] = len(stores), numbers
        stores.append((rows, said))

    def recall(wanted: Sequence[int]) -> Recalled:
        places = [position - positions.start for position in wanted]
        kept, said = stores[which[places[0]]]
        flat = torch.from_numpy(np.stack([kept[where[place]] for place in places])).float()
        parts = flat.split([prod(shape) for shape in said.values()], dim=1)
        states = {name: part.unflatten(1, said[name]) for name, part in zip(said, parts, strict=True)}
        return Recalled(states.pop(PREDICTION), states)

    return recall


def _state_names(teacher: Teacher) -> list[str]:
    """Return the modules whose outputs are compared, in an order that does not depend on the student."""
    return sorted({pair.teacher for pair in teacher.pairs})


def _check_fits(teacher: Teacher, said: Mapping[str, Tensor], positions: Sequence[int]) -> None:
    """Refuse what is not finite in fp16.

    Raises:
        VegaError: Something is not.
    """
    for name, value in said.items():
        whole = value.half().flatten(1).isfinite().all(dim=1)
        if not whole.all():
            row = int((~whole).nonzero()[0])
            what = "its prediction" if name == PREDICTION else f"the output of {name}"
            most = float(value[row].abs().max())
            why = (
                f"beyond what fp16 holds (up to {most:.3g}); ask it live: remove objective.fixed_samples"
                if isfinite(most)
                else "that are not finite; its weights or its dtype are not right"
            )
            raise VegaError(
                f"objective.teachers.{teacher.spec.name}: {what} for sample {positions[row]} has numbers {why}"
            )
