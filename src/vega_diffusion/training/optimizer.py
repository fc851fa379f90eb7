"""Builds the optimizer of a recipe, says which can run here and what memory they take, and gives the rate of a step.

The learning rate is a pure function of the optimizer step: it needs no state, so it cannot drift on resume and does
not notice gradient accumulation.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from typing import Any, assert_never

import torch
from torch import Tensor

from vega_diffusion.errors import InvalidValue, Unavailable
from vega_diffusion.specs.optimizer import (
    OPTIMIZER_KINDS,
    AdafactorSpec,
    AdamW8bitSpec,
    AdamWSpec,
    LrScheduleSpec,
    OptimizerSpec,
    ProdigySpec,
)
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.rounding import BUCKET, StochasticRounding
from vega_diffusion.training.student import Student

PACKAGES = {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}
"""Kinds that need a package of the extra `optimizers`."""

INSTEAD = {
    "adamw_8bit": "adafactor (less memory, needs no package) or adamw",
    "prodigy": "adamw with a rate of your own",
}
"""What to take where a kind cannot run."""

SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
"""Of bitsandbytes: the fewest values that it keeps in 8 bits, and how many share a scale."""


def check_optimizer(recipe: TrainRecipe, device: torch.device) -> None:
    """Refuse, before anything is loaded, an optimizer that could not run on this machine or with this recipe.

    Raises:
        InvalidValue: Settings that do not go together, or names of components that do not learn.
        Unavailable: A package is missing or does not work on the device.
    """
    spec, model = recipe.optimizer, recipe.model
    if recipe.sharding == "full" and (spec.kind != "adamw" or spec.stochastic_rounding):
        what = "stochastic rounding" if spec.stochastic_rounding else spec.kind
        raise InvalidValue("sharding", "full", f"none with {what}; adamw alone can be split", "change one of the two")
    bf16 = model.dtype == "bf16" and model.lora is None
    if spec.stochastic_rounding != bf16:
        allowed = "true with model.dtype = bf16" if bf16 else "false unless weights that learn are bf16"
        raise InvalidValue("optimizer.stochastic_rounding", spec.stochastic_rounding, allowed, "change one of the two")
    for name in spec.weight_decays:
        if name.split(".")[0] not in model.train:
            choose = f"modules of the trained components ({', '.join(model.train)})"
            raise InvalidValue("optimizer.weight_decays", name, choose, "rename or remove it")
    reason = unavailable_because(spec.kind, device)
    if reason is not None:
        raise Unavailable(f"optimizer.kind: {spec.kind} cannot run here: {reason}; or use {INSTEAD[spec.kind]}")


def unavailable_because(kind: str, device: torch.device | str = "cpu") -> str | None:
    """Say why a kind of optimizer cannot run on a device of this machine, or None where it can.

    It takes a step with two small tensors: packages that are there but lack their kernels fail only then. The scripts
    with the flags of diffusers ask it whether `--use_8bit_adam` can be had.

    Raises:
        InvalidValue: There is no such kind.
    """
    if kind not in OPTIMIZER_KINDS:
        raise InvalidValue("optimizer.kind", kind, f"one of: {', '.join(OPTIMIZER_KINDS)}", "change it")
    if kind not in PACKAGES:
        return None
    missing = missing_package(kind)
    if missing is not None:
        return missing
    spec = AdamW8bitSpec(kind="adamw_8bit") if kind == "adamw_8bit" else ProdigySpec(kind="prodigy")
    try:
        parameters = [torch.nn.Parameter(torch.ones(size, device=device)) for size in (2, SMALLEST_8BIT)]
        optimizer = _of_library(spec, [{"params": parameters}])
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # what a library without its kernels raises
        return f"{PACKAGES[kind]} does not work on {device} ({_one_line(error)})"
    return None


def missing_package(kind: str) -> str | None:
    """Say which package a kind of optimizer lacks here; nothing is loaded for it."""
    package = PACKAGES.get(kind)
    if package is None or find_spec(package) is not None:
        return None
    return f"it needs {package}, pip install 'vega-diffusion[optimizers]'"


def build_optimizer(spec: OptimizerSpec, student: Student, seed: int = 0) -> torch.optim.Optimizer:
    """Return the optimizer of every parameter that learns at step 0, with the spec's own numbers.

    Args:
        spec: Which, and its settings.
        student: What learns; parameters with another rate or decay than others are a group of their own.
        seed: Of the run, for stochastic rounding.

    Raises:
        InvalidValue: A name in `lr_factors` or `weight_decays` meets no parameter, or nothing that learns is bf16
            where rounding is stochastic.
    """
    factors = _by_parameter(spec.lr_factors, 1.0, student, "optimizer.lr_factors")
    decays = _by_parameter(spec.weight_decays, spec.weight_decay, student, "optimizer.weight_decays")
    found: dict[tuple[float, float], list[Tensor]] = {}
    names: dict[int, str] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            names[id(parameter)] = name
            found.setdefault((factors[name], decays[name]), []).append(parameter)
    groups = [
        {"params": some, "lr_factor": factor, "lr": spec.lr * factor, "weight_decay": decay}
        for (factor, decay), some in found.items()
    ]
    if not spec.stochastic_rounding:
        return _of_library(spec, groups)
    if all(parameter.dtype != torch.bfloat16 for some in found.values() for parameter in some):
        allowed = "false where no weight that learns is bf16"
        raise InvalidValue("optimizer.stochastic_rounding", True, allowed, "set model.dtype = bf16 or remove it")
    # Prodigy's estimate is one for all parameters: a step with a part of them would be another one.
    return StochasticRounding(partial(_of_library, spec), groups, names, seed, at_once=spec.kind == "prodigy")


def begin_step(optimizer: torch.optim.Optimizer, step: int, lr: float) -> None:
    """Tell an optimizer which step comes next, and its rate: every group's is `lr` times the group's own factor."""
    if isinstance(optimizer, StochasticRounding):
        optimizer.position = step
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def optimizer_bytes(spec: OptimizerSpec, shapes: Iterable[torch.Size]) -> int:
    """Return the bytes that an optimizer holds beside weights and gradients: moments, and copies for rounding."""
    sizes = [(shape, shape.numel()) for shape in shapes]
    copies = 0
    if spec.stochastic_rounding and sizes:  # weights and gradients of a bucket in fp32
        values = sum(size for _, size in sizes)
        largest = max(size for _, size in sizes)
        copies = 8 * (values if spec.kind == "prodigy" else min(values, max(BUCKET, largest)))
    return copies + sum(_moment_bytes(spec, shape, size) for shape, size in sizes)


def _moment_bytes(spec: OptimizerSpec, shape: torch.Size, size: int) -> int:
    match spec:
        case AdamWSpec():
            return 4 * 2 * size
        case AdamW8bitSpec():
            return 4 * 2 * size if size < SMALLEST_8BIT else 2 * size + 2 * 4 * math.ceil(size / BLOCK_8BIT)
        case AdafactorSpec():
            second = size // shape[-1] + size // shape[-2] if len(shape) >= 2 else size
            return 4 * (second + (0 if spec.beta1 is None else size))
        case ProdigySpec():  # the first weights and a sum of gradients beside the moments
            return 4 * (4 if spec.betas[0] else 3) * size
        case _:
            assert_never(spec)


def _by_parameter(values: Mapping[str, float], otherwise: float, student: Student, field: str) -> dict[str, float]:
    """Return name of parameter -> the value of the last pattern that meets it."""
    found: dict[str, float] = {}
    met: set[str] = set()
    for name, _ in student.named_parameters():
        meeting = [one for one in values if fnmatchcase(name, one) or fnmatchcase(name, one + ".*")]
        met.update(meeting)
        found[name] = values[meeting[-1]] if meeting else otherwise
    for module in values:
        if module not in met:
            choose = "a trained component or modules in it"
            raise InvalidValue(field, module, choose, "compare `vega inspect` or named_parameters()")
    return found


def _of_library(spec: OptimizerSpec, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimizer of the library that has it; every field of the spec is named here."""
    match spec:
        case AdamWSpec():
            return torch.optim.AdamW(
                groups,
                lr=spec.lr,
                betas=spec.betas,
                eps=spec.eps,
                weight_decay=spec.weight_decay,
                fused=True,  # one kernel for all tensors: the plain loop costs more than a mini U-Net's forward pass
            )
        case AdamW8bitSpec():
            return _adamw_8bit(spec, groups)
        case AdafactorSpec():
            from transformers.optimization import Adafactor

            return Adafactor(
                groups,
                lr=spec.lr,
                eps=(spec.eps, 1e-3),
                clip_threshold=spec.clip_threshold,
                decay_rate=spec.decay_rate,
                beta1=spec.beta1,
                weight_decay=spec.weight_decay,
                scale_parameter=spec.scale_parameter,
                relative_step=False,
                warmup_init=False,
            )
        case ProdigySpec():
            from prodigyopt import Prodigy

            decay: Any = spec.weight_decay  # whose annotation there says int
            with contextlib.redirect_stdout(io.StringIO()):  # it prints a line about weight decay
                return Prodigy(
                    groups,
                    lr=spec.lr,
                    betas=spec.betas,
                    beta3=spec.beta3,
                    eps=spec.eps,
                    weight_decay=decay,
                    decouple=spec.decouple,
                    use_bias_correction=spec.use_bias_correction,
                    safeguard_warmup=spec.safeguard_warmup,
                    d0=spec.d0,
                    d_coef=spec.d_coef,
                )
        case _:
            assert_never(spec)


def _adamw_8bit(spec: AdamW8bitSpec, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    class LayoutKeepingAdamW8bit(AdamW8bit):
        """bitsandbytes lays out weights anew, for good, where they are in channels_last; here they stay as they are."""

        def update_step(self, group: Any, p: Any, gindex: int, pindex: int) -> None:
            before = p.data
            super().update_step(group, p, gindex, pindex)
            if p.data_ptr() != before.data_ptr():
                p.data = before.copy_(p.data)

    return LayoutKeepingAdamW8bit(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def lr_factor(spec: LrScheduleSpec, step: int, steps: int) -> float:
    """Return the multiplier of the peak rate at an optimizer step.

    Warm-up: (step + 1) / warmup_steps. Then, with p = (step - warmup_steps) / (end - warmup_steps) in 0..1:
    linear 1 - p, cosine (1 + cos(pi p)) / 2, with c restarts (1 + cos(pi (c p mod 1))) / 2, polynomial
    (1 - p) ** power; all scaled to end at `final_factor`.

    Args:
        spec: The schedule.
        step: Number of optimizer steps done so far, >= 0.
        steps: Length of the run; the decay ends there unless the spec says otherwise.
    """
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    end = spec.decay_steps or steps
    progress = min(1.0, (step - spec.warmup_steps) / max(1, end - spec.warmup_steps))
    match spec.kind:
        case "constant":
            return 1.0
        case "linear":
            fall = 1.0 - progress
        case "cosine":
            fall = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            within = spec.num_cycles * progress % 1.0 if progress < 1.0 else 1.0
            fall = 0.5 * (1.0 + math.cos(math.pi * within))
        case "polynomial":
            fall = (1.0 - progress) ** spec.power
        case _:
            assert_never(spec.kind)
    return spec.final_factor + (1.0 - spec.final_factor) * fall
