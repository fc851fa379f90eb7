"""The plan of a run before it starts: steps, samples, parameters, memory and time, from the real module shapes.

Networks are built on the meta device and one micro-batch goes through them forwards and backwards there, so a plan
takes seconds and no memory. Memory is counted, time is estimated: work divided by what this machine's matrix product
reaches, times a utilisation that was measured with the mini family.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scenes.crowd import MOST
from vega_diffusion.data.scenes.targets import slot_sizes
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.build import build_heads, build_objective
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import find_spec, seeded_component, unread_modules
from vega_diffusion.training.run import HELPERS
from vega_diffusion.training.student import Student

GIB = 2**30
# Share of the matrix product's speed that training reaches: vega-mini in fp32, the compiled autoencoder in bf16, both
# on one Zen 5 thread. A guess elsewhere.
UTILISATION = {"no": 0.7, "bf16": 0.28, "fp16": 0.28}
SHORT_CAPTION = 24


@dataclass(frozen=True)
class TrainPlan:
    """What a run will take. Memory is per process and without the framework itself; seconds are an estimate."""

    steps: int
    samples: int
    micro_batches_per_step: int
    trained_parameters: int
    frozen_parameters: int
    weights_gib: float
    optimizer_gib: float
    activations_gib: float
    total_gib: float
    gflop_per_sample: float
    device: str
    seconds_estimate: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        hours = self.seconds_estimate / 3600
        return "\n".join(
            (
                f"steps       {self.steps:,} of {self.samples // self.steps:,} samples "
                f"({self.micro_batches_per_step} micro-batches each): {self.samples:,} samples",
                f"parameters  {self.trained_parameters:,} trained, {self.frozen_parameters:,} frozen",
                f"memory      {self.total_gib:.2f} GiB a process: weights {self.weights_gib:.2f}, "
                f"gradients, moments and average {self.optimizer_gib:.2f}, activations {self.activations_gib:.2f}",
                f"work        {self.gflop_per_sample:.2f} GFLOP a sample, forwards and backwards",
                f"time        about {hours:.1f} h on {self.device} by one process (estimate)",
            )
        )


def plan_run(recipe: TrainRecipe, device: torch.device) -> TrainPlan:
    """Return the plan of a recipe on a device; reads no weights and no data.

    Raises:
        VegaError: The recipe names a model or module that does not exist.
    """
    spec = find_spec(recipe.model.base)
    with torch.device("meta"):
        student, frozen = _meta_student(recipe, spec)
        objective = build_objective(recipe.objective, spec, frozen)
        objective.to(torch.device("meta"))
        batch = example_batch(recipe, spec)
    rng = PositionRng(recipe.seed, range(len(batch)), "meta")
    with _counting_saved_bytes(student) as saved, FlopCounterMode(display=False) as counter:
        objective(student, batch, rng).total.backward()
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in student.parameters()) - trained
    fixed += sum(p.numel() for module in frozen.values() for p in module.parameters())
    weights = 4 * (trained + fixed) / GIB
    optimizer = 4 * trained * (4 if recipe.ema else 3) / GIB
    activations = saved[0] / GIB * (1.0 if recipe.mixed_precision == "no" else 0.6)
    work = counter.get_total_flops() / len(batch)
    samples = recipe.steps * recipe.batch_size
    return TrainPlan(
        steps=recipe.steps,
        samples=samples,
        micro_batches_per_step=recipe.batch_size // recipe.micro_batch_size,
        trained_parameters=trained,
        frozen_parameters=fixed,
        weights_gib=weights,
        optimizer_gib=optimizer,
        activations_gib=activations,
        total_gib=weights + optimizer + activations,
        gflop_per_sample=work / 1e9,
        device=str(device),
        seconds_estimate=work
        * samples
        / (matmul_speed(device, recipe.mixed_precision) * UTILISATION[recipe.mixed_precision]),
    )


def example_batch(recipe: TrainRecipe, spec: ModelSpec) -> Batch:
    """Return one micro-batch of the right shapes with no values, on the current device."""
    count, vae = recipe.micro_batch_size, spec.autoencoder
    ids = [f"example {number}" for number in range(count)]
    tokens = torch.zeros(count, spec.text_encoder.max_position_embeddings, dtype=torch.int64)
    tensors: dict[str, Tensor]
    match recipe.objective.kind:
        case "autoencoding":
            tensors = {"pixels": torch.zeros(count, 3, vae.sample_size, vae.sample_size)}
        case "denoising":
            side = spec.unet.sample_size
            tensors = {
                "latents": torch.zeros(count, vae.latent_channels, side, side),
                "input_ids": tokens,
                "input_ids_2": tokens,
                "time_ids": torch.zeros(count, 6),
                "keep": torch.ones(count, dtype=torch.bool),
            }
        case "scene_text":
            tokens = tokens[:, :SHORT_CAPTION]  # the data source cuts the padding off
            tensors = {"input_ids": tokens, "input_ids_2": tokens} | {
                f"target.{slot}": torch.zeros(count, dtype=torch.int64) for slot in slot_sizes()
            }
        case "scene_checking":
            classes = torch.zeros(count, MOST, dtype=torch.int64)
            tensors = {
                "pixels": torch.zeros(count, 3, vae.sample_size, vae.sample_size),
                "boxes": torch.zeros(count, MOST, 4),
                "nouns": classes,
                "colours": classes,
                "style": classes[:, 0],
                "background": classes[:, 0],
                "judged": torch.ones(count, dtype=torch.bool),
            }
        case _:
            assert_never(recipe.objective.kind)
    return Batch(ids, tensors)


def matmul_speed(device: torch.device, precision: str = "no", windows: int = 12) -> float:
    """Return FLOP/s of 512 x 512 matrix products in a run's precision, with the threads that torch has.

    The best of several short windows counts, so that a busy machine is not taken for a slow one.
    """
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.randn(512, 512, device=device).to(dtype) for _ in range(2))
    products, best = 16 if device.type == "cpu" else 2000, float("inf")
    for _ in range(windows):
        started = time.monotonic()
        for _ in range(products):
            c = a @ b
        float(c[0, 0])
        best = min(best, time.monotonic() - started)
    return products * 2 * 512**3 / best


def _meta_student(recipe: TrainRecipe, spec: ModelSpec) -> tuple[Student, dict[str, nn.Module]]:
    trained = {name: seeded_component(spec, name, 0) for name in recipe.model.train}
    helpers = [name for name in HELPERS[recipe.objective.kind] if name not in trained]
    frozen = {name: seeded_component(spec, name, 0).requires_grad_(False) for name in helpers}
    heads = build_heads(recipe.objective, spec, recipe.seed)
    freeze = (*recipe.model.freeze, *unread_modules(trained))
    student = Student(trained, heads, freeze, recipe.model.freeze_after)
    for name in recipe.compile:
        student.module_named(name, "compile")
    return student.train(), frozen


@contextmanager
def _counting_saved_bytes(student: nn.Module) -> Iterator[list[int]]:
    """Count the bytes of what the backward pass keeps; each storage once, parameters not at all."""
    seen = {parameter.untyped_storage()._cdata for parameter in student.parameters()}  # views of weights cost nothing
    total = [0]
    kept = []  # a freed storage's address may be used again: keep them all for the length of the count

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(storage)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
