"""Builds the optimizer of a recipe and gives the learning rate of a step.

The learning rate is a pure function of the optimizer step: it needs no state, so it cannot drift on resume and does
not notice gradient accumulation.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import assert_never

import torch

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.optimizer import AdamWSpec, LrScheduleSpec
from vega_diffusion.training.student import Student


def build_optimizer(spec: AdamWSpec, student: Student) -> torch.optim.AdamW:
    """Return AdamW over every parameter that learns at step 0, one group a rate, with the spec's own numbers.

    Raises:
        InvalidValue: A name in `lr_factors` meets no parameter.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    met: set[str] = set()
    for name, parameter in student.named_parameters():
        names = [module for module in spec.lr_factors if fnmatchcase(name, module) or fnmatchcase(name, module + ".*")]
        met.update(names)
        if parameter.requires_grad:
            factor = spec.lr_factors[names[-1]] if names else 1.0
            groups.setdefault(factor, []).append(parameter)
    for module in spec.lr_factors:
        if module not in met:
            choose = "a trained component or modules in it"
            raise InvalidValue("optimizer.lr_factors", module, choose, "compare `vega inspect` or named_parameters()")
    return torch.optim.AdamW(
        [{"params": some, "lr_factor": factor, "lr": spec.lr * factor} for factor, some in groups.items()],
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,  # one kernel for all tensors: the plain loop costs more than a mini U-Net's forward pass
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's rate to `lr` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def lr_factor(spec: LrScheduleSpec, step: int, steps: int) -> float:
    """Return the multiplier of the peak rate at an optimizer step.

    Warm-up: (step + 1) / warmup_steps. Then, with p = (step - warmup_steps) / (end - warmup_steps) in 0..1:
    linear 1 - p, cosine (1 + cos(pi p)) / 2, both scaled to end at `final_factor`.

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
        case _:
            assert_never(spec.kind)
    return spec.final_factor + (1.0 - spec.final_factor) * fall
