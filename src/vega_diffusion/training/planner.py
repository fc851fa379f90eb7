"""The plan of a run before it starts: steps, samples, parameters, memory and time, from the real module shapes.

Networks are built on the meta device and one micro-batch goes through them forwards and backwards there, so a plan
takes seconds and no memory. Memory is counted, time is estimated: work divided by what this machine's matrix product
reaches, times a utilisation that was measured with the mini family.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.models.lora import add_lora
from vega_diffusion.objectives.before import ModelBefore
from vega_diffusion.objectives.build import build_heads, build_objective
from vega_diffusion.objectives.teachers import Recalled, Teacher
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.checkpointing import BlockCost, blocks_of, enable
from vega_diffusion.training.components import model_spec, seeded_component, unread_modules
from vega_diffusion.training.example_batch import example_batch, latent_side
from vega_diffusion.training.meta_attention import fused_attention
from vega_diffusion.training.optimizer import lr_factor, missing_package, optimizer_bytes
from vega_diffusion.training.run import HELPERS, captions_cached, model_before
from vega_diffusion.training.sample_budget import sample_interval
from vega_diffusion.training.student import Student
from vega_diffusion.training.teacher_cache import PREDICTION, answer_shapes
from vega_diffusion.training.teachers import build_teachers

GIB = 2**30
# Share of the matrix product's speed that training reaches: vega-mini in fp32, the compiled autoencoder in bf16, both
# on one Zen 5 thread. A guess elsewhere.
UTILISATION = {"no": 0.7, "bf16": 0.28, "fp16": 0.28}
# Above so many trained parameters a plan says on which cards they fit.
LARGE = 100_000_000
# Memory in GB, dense half-precision TFLOP/s by the vendor's data sheet, what it is.
CARDS = ((24, 165, "RTX 4090"), (48, 362, "L40S"), (80, 312, "A100"), (141, 989, "H200"))
# From so many samples of a micro-batch on, keeping activations is worth more than further samples: computing blocks
# twice costs a quarter of a Vega step.
ENOUGH = 4
# For the framework, its workspaces and fragmentation.
RESERVED_GIB = 2.0
# On a CPU, what is freed between tensors that stay is not given back: a process grows by half as much again as it
# keeps for the way back. Measured with Vega at 256, 512 and 768 px in fp32 (`full-size-adapting`); with glibc's
# MALLOC_MMAP_THRESHOLD_ at 1 MiB, a few per cent slower, it grows by what is counted.
CPU_GROWTH = 1.5


@dataclass(frozen=True)
class CardFit:
    """Whether a run fits a GPU, and how: None where it does not. Hours are an estimate, for one such card."""

    card: str
    memory_gb: int
    micro_batch_size: int | None
    activation_checkpointing: bool | None
    total_gib: float | None
    gpu_hours: float | None

    def __str__(self) -> str:
        where = f"{self.memory_gb} GB".ljust(8)
        if self.micro_batch_size is None:
            return f"{where}    does not fit, even one sample at a time with activation checkpointing"
        switch = "with" if self.activation_checkpointing else "without"
        return (
            f"{where}    fits: micro_batch_size {self.micro_batch_size}, {switch} activation checkpointing, "
            f"{self.total_gib:.1f} GiB; {self.gpu_hours:,.0f} GPU-hours ({self.card}, estimate)"
        )


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
    cache_mib_per_picture: float = 0.0
    fixed_samples: int = 0
    gflop_per_output: float = 0.0
    cards: tuple[CardFit, ...] = ()
    optimizer: str = ""
    learning_rates: tuple[tuple[int, float], ...] = ()
    looks_every: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        hours = self.seconds_estimate / 3600
        cache = f"caches      {self.cache_mib_per_picture:.2f} MiB on disk a picture"
        outputs = (
            f"teachers    asked once about {self.fixed_samples:,} samples, {self.gflop_per_output:,.2f} GFLOP each "
            "(in the time)"
        )
        return "\n".join(
            [
                f"steps       {self.steps:,} of {self.samples // self.steps:,} samples "
                f"({self.micro_batches_per_step} micro-batches each): {self.samples:,} samples",
                f"parameters  {self.trained_parameters:,} trained, {self.frozen_parameters:,} frozen",
                f"memory      {self.total_gib:.2f} GiB a process: weights {self.weights_gib:.2f}, "
                f"gradients, moments and average {self.optimizer_gib:.2f}, activations {self.activations_gib:.2f}",
                f"optimizer   {self.optimizer}",
                "rate        " + ", ".join(f"{lr:.3g} at {step:,}" for step, lr in self.learning_rates),
                *([f"samples     every {self.looks_every:,} steps"] if self.looks_every else []),
                f"work        {self.gflop_per_sample:.2f} GFLOP a sample, forwards and backwards",
                f"time        about {hours:,.1f} h on {self.device} by one process (estimate)",
                *([cache] if self.cache_mib_per_picture else []),
                *([outputs] if self.fixed_samples else []),
                *map(str, self.cards),
            ]
        )


def plan_run(recipe: TrainRecipe, device: torch.device) -> TrainPlan:
    """Return the plan of a recipe on a device; reads no weights and no data.

    Raises:
        VegaError: The recipe names a model or module that does not exist.
    """
    spec = model_spec(recipe)
    # There attention runs as plain products (`attention.py`), everywhere else by fused kernels.
    fused = device.type != "cpu" or recipe.mixed_precision != "bf16"
    step = _meta_step(recipe, spec, fused)
    trained, fixed = step.trained, step.fixed
    memory = _memory(recipe, step, device)
    work = step.flops_per_sample
    samples = recipe.steps * recipe.batch_size
    asked, fixed_samples = _asked_once(recipe, spec, step)
    large = recipe.objective.kind in ("denoising", "distillation") and trained >= LARGE
    return TrainPlan(
        steps=recipe.steps,
        samples=samples,
        micro_batches_per_step=recipe.batch_size // recipe.micro_batch_size,
        trained_parameters=trained,
        frozen_parameters=fixed + step.taught,
        weights_gib=memory.weights,
        optimizer_gib=memory.optimizer,
        activations_gib=memory.activations,
        total_gib=memory.total,
        gflop_per_sample=work / 1e9,
        device=str(device),
        seconds_estimate=(work * samples + asked * fixed_samples)
        / (matmul_speed(device, _here(recipe, device)) * UTILISATION[recipe.mixed_precision]),
        cache_mib_per_picture=_cache_bytes(recipe, spec) / 2**20,
        fixed_samples=fixed_samples,
        gflop_per_output=asked / 1e9,
        cards=tuple(_fits(recipe, spec, memory.weights + memory.optimizer, asked * fixed_samples)) if large else (),
        optimizer=_said_of_optimizer(recipe, optimizer_bytes(recipe.optimizer, step.shapes), trained),
        learning_rates=_learning_rates(recipe),
        looks_every=sample_interval(recipe, spec),
    )


@dataclass(frozen=True)
class _Memory:
    """What one process holds during a step, GiB."""

    weights: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.activations


def _memory(recipe: TrainRecipe, step: _MetaStep, device: torch.device) -> _Memory:
    # Autocast keeps a second copy of the weights in half precision for the length of a step.
    size = _weight_size(recipe)
    half = 0 if recipe.mixed_precision == "no" or size < 4 else 2 * step.trained
    weights = step.weight_bytes + half + step.teacher_bytes
    gradients_and_averages = step.trained * (size + (4 if recipe.ema else 0))
    moments = optimizer_bytes(recipe.optimizer, step.shapes)
    activations = step.saved_bytes * _growth(device)
    return _Memory(weights / GIB, (gradients_and_averages + moments) / GIB, activations / GIB)


def _growth(device: torch.device) -> float:
    """Return by how much a process grows for a byte that is kept for the way back."""
    return CPU_GROWTH if device.type == "cpu" else 1.0


def _learning_rates(recipe: TrainRecipe) -> tuple[tuple[int, float], ...]:
    """Return (step, rate) at the start, the end of the warm-up, the quarters and the last step."""
    last, warmup = recipe.steps - 1, recipe.lr_schedule.warmup_steps
    steps = sorted({0, warmup, *(warmup + (last - warmup) * quarter // 4 for quarter in (1, 2, 3)), last})
    return tuple((at, recipe.optimizer.lr * lr_factor(recipe.lr_schedule, at, recipe.steps)) for at in steps)


def _weight_size(recipe: TrainRecipe) -> int:
    """Return the bytes of a weight that learns, and of its gradient: adapters are fp32 on any base."""
    return 4 if recipe.model.lora is not None or recipe.model.dtype == "fp32" else 2


def _said_of_optimizer(recipe: TrainRecipe, moments: int, trained: int) -> str:
    """Return what a plan says of the optimizer: its kind, what it takes a parameter, and what it lacks here."""
    spec = recipe.optimizer
    rounding = ", bf16 weights rounded by chance" if spec.stochastic_rounding else ""
    missing = missing_package(spec.kind)
    lacks = f"; not here: {missing}" if missing else ""
    return f"{spec.kind}: {moments / max(1, trained):.2f} bytes a trained parameter{rounding}{lacks}"


@dataclass(frozen=True)
class _MetaStep:
    """One micro-batch on the meta device: parameters, shapes of those that learn, bytes, work.

    `saved_bytes` are kept for the way back.
    """

    trained: int
    fixed: int
    shapes: tuple[torch.Size, ...]
    weight_bytes: int
    taught: int
    teacher_bytes: int
    saved_bytes: float
    flops_per_sample: float


def _meta_step(recipe: TrainRecipe, spec: ModelSpec, fused: bool = True) -> _MetaStep:
    with torch.device("meta"):
        student, frozen, before = _meta_student(recipe, spec)
        teachers = _meta_teachers(recipe, spec)
        objective = build_objective(recipe.objective, spec, frozen, teachers, recipe.batch_size, before)
        objective.to(torch.device("meta"))
        batch = example_batch(recipe, spec)
    rng = PositionRng(recipe.seed, range(len(batch)), "meta")
    attention = fused_attention() if fused else nullcontext()
    with attention, _counting_saved_bytes(student) as saved, FlopCounterMode(display=False) as counter:
        objective(student, batch, rng).total.backward()
    shapes = tuple(p.shape for p in student.parameters() if p.requires_grad)
    trained = sum(shape.numel() for shape in shapes)
    base = sum(p.numel() for p in student.parameters()) - trained
    # Below adapters the model before training has the student's own weights.
    apart = (*frozen.values(), *([before] if before is not None and recipe.model.lora is None else []))
    helpers = sum(p.numel() for module in apart for p in module.parameters())
    fixed = base + helpers
    held = 4 if recipe.model.dtype == "fp32" else 2  # what learns, and what adapters sit on
    weight_bytes = _weight_size(recipe) * trained + held * base + 4 * helpers
    taught, teacher_bytes = _teacher_sizes(recipe, teachers)
    kept = saved[0] * (1.0 if recipe.mixed_precision == "no" else 0.6)
    work = counter.get_total_flops() / len(batch)
    return _MetaStep(trained, fixed, shapes, weight_bytes, taught, teacher_bytes, kept, work)


def needed_without_checkpointing(recipe: TrainRecipe, device: torch.device) -> tuple[float, dict[str, BlockCost]]:
    """Return the bytes that a run takes where every block keeps everything, and what checkpointing each one changes."""
    plain = recipe.model_copy(update={"activation_checkpointing": False})
    spec = model_spec(plain)
    with torch.device("meta"):
        names = blocks_of(seeded_component(spec, "unet", 0))
    without = _meta_step(plain, spec)
    costs = {}
    for name in names:
        step = _meta_step(plain.model_copy(update={"activation_checkpointing": (name,)}), spec)
        again = (step.flops_per_sample - without.flops_per_sample) * recipe.micro_batch_size
        costs[name] = BlockCost((without.saved_bytes - step.saved_bytes) * _growth(device), again)
    return GIB * _memory(plain, without, device).total, costs


def _asked_once(recipe: TrainRecipe, spec: ModelSpec, step: _MetaStep) -> tuple[float, int]:
    """Return the work of one cached teacher's answer and how many are cached."""
    objective = recipe.objective
    if not isinstance(objective, DistillationSpec) or objective.fixed_samples is None:
        return 0.0, 0
    live = recipe.model_copy(update={"objective": objective.model_copy(update={"fixed_samples": None})})
    return _meta_step(live, spec).flops_per_sample - step.flops_per_sample, objective.fixed_samples


def _fits(recipe: TrainRecipe, spec: ModelSpec, fixed_gib: float, once: float) -> Iterator[CardFit]:
    """Yield, for cards of several sizes, the largest micro-batch that fits, with activation checkpointing if it must.

    What a micro-batch keeps is proportional to its samples, so it is counted for one. `once` is work beside the steps.
    """
    steps = {
        checkpointing: _meta_step(
            recipe.model_copy(update={"micro_batch_size": 1, "activation_checkpointing": checkpointing}), spec
        )
        for checkpointing in (False, True)
    }
    sizes = [size for size in range(1, recipe.batch_size + 1) if recipe.batch_size % size == 0]
    for memory, tflops, name in CARDS:
        best = None
        for checkpointing, step in steps.items():
            room = memory * 1e9 / GIB - RESERVED_GIB - fixed_gib
            fitting = [size for size in sizes if size * step.saved_bytes / GIB <= room]
            if fitting and (best is None or best[0] < ENOUGH < max(fitting)):
                best = (max(fitting), checkpointing, step)
        if best is None:
            yield CardFit(name, memory, None, None, None, None)
            continue
        size, checkpointing, step = best
        total = fixed_gib + size * step.saved_bytes / GIB
        work = step.flops_per_sample * recipe.steps * recipe.batch_size + once
        hours = work / (tflops * 1e12 * UTILISATION["bf16"]) / 3600
        yield CardFit(name, memory, size, checkpointing, round(total, 2), round(hours, 1))


def _here(recipe: TrainRecipe, device: torch.device) -> str:
    """Return the precision whose speed is measured: a CPU stands in with bf16 for fp16."""
    return "bf16" if device.type == "cpu" and recipe.mixed_precision == "fp16" else recipe.mixed_precision


def _cache_bytes(recipe: TrainRecipe, spec: ModelSpec) -> int:
    """Return the bytes on disk of one picture: latents and, where text encoders are frozen, one encoded caption."""
    if recipe.objective.kind not in ("denoising", "distillation"):
        return 0
    cells = latent_side(recipe, spec) ** 2
    latents = 2 * spec.autoencoder.latent_channels * cells * 2
    pooled = spec.text_encoder_2.projection_dim if spec.text_encoder_2 else 0
    tokens = spec.text_encoder.max_position_embeddings
    caption = 0 if not captions_cached(recipe) else 2 * (tokens * spec.unet.cross_attention_dim + pooled)
    return latents + caption + 2 * _said_numbers(recipe, spec)


def _said_numbers(recipe: TrainRecipe, spec: ModelSpec) -> int:
    """Return how many numbers are kept of what the teachers say of one sample, of the one who says most."""
    if not isinstance(recipe.objective, DistillationSpec) or recipe.objective.fixed_samples is None:
        return 0
    teachers = build_teachers(recipe.objective, spec, None, recipe.mixed_precision)
    return max(sum(map(prod, _said_shapes(recipe, spec, teacher).values())) for teacher in teachers)


SLOW_PRODUCT_S = 0.1


def matmul_speed(device: torch.device, precision: str = "no", windows: int = 12) -> float:
    """Return FLOP/s of 512 x 512 matrix products in a run's precision, with the threads that torch has.

    The best of several short windows counts, so that a busy machine is not taken for a slow one.
    """
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.randn(512, 512, device=device).to(dtype) for _ in range(2))
    begun = time.monotonic()
    float((a @ b)[0, 0])
    # A processor without instructions for a format takes a hundred times as long; a plan is made in seconds anyway.
    slow = time.monotonic() - begun > SLOW_PRODUCT_S
    products, best = 2000 if device.type != "cpu" else 1 if slow else 16, float("inf")
    for _ in range(3 if slow else windows):
        started = time.monotonic()
        for _ in range(products):
            c = a @ b
        float(c[0, 0])
        best = min(best, time.monotonic() - started)
    return products * 2 * 512**3 / best


def _meta_student(recipe: TrainRecipe, spec: ModelSpec) -> tuple[Student, dict[str, nn.Module], ModelBefore | None]:
    trained = {name: seeded_component(spec, name, 0) for name in recipe.model.train}
    helpers = [] if captions_cached(recipe) else [n for n in HELPERS[recipe.objective.kind] if n not in trained]
    frozen = {name: seeded_component(spec, name, 0).requires_grad_(False) for name in helpers}
    heads = build_heads(recipe.objective, spec, recipe.seed)
    before = model_before(recipe, spec, trained)
    if recipe.model.lora is not None:
        for module in trained.values():
            add_lora(module, recipe.model.lora, 0)
    freeze = (*recipe.model.freeze, *unread_modules(trained))
    student = Student(trained, heads, freeze, recipe.model.freeze_after, recipe.model.lora is not None)
    for name in recipe.compile:
        student.module_named(name, "compile")
    if recipe.activation_checkpointing and recipe.activation_checkpointing != "auto":
        enable(student.get_submodule("unet"), recipe.activation_checkpointing)
    return student.train(), frozen, before


def _meta_teachers(recipe: TrainRecipe, spec: ModelSpec) -> list[Teacher]:
    """Return the teachers on the meta device; with fixed samples they are asked before the run and not in it."""
    if not isinstance(recipe.objective, DistillationSpec):
        return []
    teachers = build_teachers(recipe.objective, spec, None, recipe.mixed_precision)
    if recipe.objective.fixed_samples is None:
        return teachers
    return [replace(teacher, recall=_recall_on_meta(_said_shapes(recipe, spec, teacher))) for teacher in teachers]


def _said_shapes(recipe: TrainRecipe, spec: ModelSpec, teacher: Teacher) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of what a teacher says of one sample."""
    side = latent_side(recipe, spec)
    return answer_shapes(teacher, spec, (spec.unet.in_channels, side, side))


def _recall_on_meta(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[Sequence[int]], Recalled]:
    def recall(positions: Sequence[int]) -> Recalled:
        said = {name: torch.zeros(len(positions), *shape, device="meta") for name, shape in shapes.items()}
        return Recalled(said.pop(PREDICTION), said)

    return recall


def _teacher_sizes(recipe: TrainRecipe, teachers: list[Teacher]) -> tuple[int, int]:
    """Return parameters and bytes of the teachers that are in memory together, at the step where that is most."""
    if not isinstance(recipe.objective, DistillationSpec) or recipe.objective.fixed_samples is not None:
        return 0, 0
    sizes = {}
    for teacher in teachers:
        parameters = list(teacher.load().parameters())
        sizes[teacher.spec.name] = (
            sum(p.numel() for p in parameters),
            sum(p.numel() * p.element_size() for p in parameters),
        )
    most = (0, 0)
    for step in (0, *recipe.objective.swaps()):
        there = [sizes[teacher.spec.name] for teacher in teachers if teacher.spec.teaches_at(step)]
        most = max(most, (sum(one[0] for one in there), sum(one[1] for one in there)), key=lambda size: size[1])
    return most


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
