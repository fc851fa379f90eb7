"""Proposes layer maps under a budget: removal scores as a prior, short recovery trials as the judge.

Scores of single blocks are known to be bad predictors of how well a student recovers (TinyFusion, Fang et al. 2024,
arXiv 2412.01199, table 1), so a proposal tells both for every candidate, rules of thumb among them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.carve import carve_model
from vega_diffusion.models.checkpoint import load_unet
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.importance import (
    Ask,
    Costs,
    latency_costs,
    mac_costs,
    parameter_costs,
    removable_units,
    removal_errors,
)
from vega_diffusion.models.lora import add_lora, load_lora
from vega_diffusion.models.measure import count_parameters
from vega_diffusion.models.selection import Choice, choose, choose_shape, map_of, pareto
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.build import build_denoising
from vega_diffusion.objectives.denoising import Denoising, Question
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.known_maps import find_map
from vega_diffusion.specs.layer_map import LayerMap
from vega_diffusion.specs.lora import LORA_FILE, LoraSpec
from vega_diffusion.specs.objective import DenoisingSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import find_spec, locate, read_component
from vega_diffusion.training.held_out import SEED, held_out_losses
from vega_diffusion.training.run import frozen_components, run_recipe
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sources import build_source

Say = Callable[[str], None]
HELD_OUT_SEED = 991
RULES = ("first", "even", "random:0")


@dataclass(frozen=True)
class Budget:
    """What a student may have: parameters, macs of one forward, or latency, the time of one forward on this machine.

    Up to 1, `limit` is a share of the teacher's; latency always is. With `shape` the student is given, a preset's or a
    model's, and only which of the teacher's blocks it gets is chosen.
    """

    kind: Literal["parameters", "macs", "latency", "shape"]
    limit: float = 1.0
    student: str = ""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `parameters=0.3`, `parameters=750e6`, `macs=0.42`, `latency=0.5`, `shape=vega-mini`.

        Raises:
            InvalidValue: It is none of these.
        """
        kind, _, number = text.partition("=")
        if kind == "shape" and number:
            return cls("shape", student=number)
        try:
            limit = float(number)
        except ValueError:
            limit = 0.0
        known = kind in ("parameters", "macs") or (kind == "latency" and limit <= 1)
        if not known or not 0 < limit < float("inf"):
            allowed = (
                "parameters= or macs= a share of the teacher's (up to 1) or a number, latency= a share, shape= a model"
            )
            raise InvalidValue("--budget", text, allowed, "as in parameters=0.3")
        return cls(kind, limit)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}={self.student or format(self.limit, 'g')}"


@dataclass(frozen=True)
class Candidate:
    """One proposed map.

    Args:
        name: What it is called.
        file: Its map, relative to the proposal's folder.
        chosen_by: `scores`, or the rule.
        prior: Sum of the removal errors of what it drops.
        unet_parameters: Of the student.
        carved_loss: Held-out denoising loss before any training.
        recovered_loss: The same after the trial; None without one.
    """

    name: str
    file: str
    chosen_by: str
    prior: float
    unet_parameters: int
    carved_loss: float
    recovered_loss: float | None = None


@dataclass(frozen=True)
class Proposal:
    """The result: removal errors, candidates in the order of their losses, and the teacher's own loss."""

    teacher: str
    budget: str
    teacher_loss: float
    trial_steps: int
    num_samples: int
    errors: dict[str, float]
    candidates: tuple[Candidate, ...]
    pareto: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def propose(
    teacher: Path,
    recipe: TrainRecipe,
    budget: Budget,
    output: Path,
    *,
    num_candidates: int = 4,
    trial_steps: int = 0,
    num_samples: int = 64,
    say: Say = lambda line: None,
) -> Proposal:
    """Score a teacher's blocks, choose maps under a budget and try how well their students recover.

    Everything is written into `output`: a map and a run for each candidate, `proposal.json`. Called again, trials go on
    where they stood.

    Args:
        teacher: Its model folder.
        recipe: A distillation on a source of latents; its data, losses and optimizer are what a trial uses.
        budget: What the student may have.
        output: Folder of the result.
        num_candidates: How many maps by scores; the rules come on top.
        trial_steps: Optimizer steps of each trial; 0 tries none.
        num_samples: Calibration and held-out samples, each.
        say: Called with a line at every stage.

    Raises:
        VegaError: The recipe does not fit the teacher, or the budget cannot be met.
    """
    if recipe.objective.kind != "distillation":
        raise InvalidValue("objective.kind", recipe.objective.kind, "distillation", "give a recipe that distils")
    if recipe.data.kind != "scene_latents":
        raise InvalidValue("data.kind", recipe.data.kind, "scene_latents, which has held-out samples", "change it")
    spec = load_spec(teacher)
    data = recipe.data.model_copy(update={"seed": HELD_OUT_SEED, "num_scenes": 2 * num_samples})
    base = _changed(recipe, teacher, data=data)
    frozen = frozen_components(base, spec)
    source = build_source(base, spec, torch.device("cpu"), frozen)
    task = build_denoising(DenoisingSpec(), spec, frozen)
    unet = load_unet(teacher, spec.unet, torch.float32)
    questions = _questions(task, source, num_samples, recipe.micro_batch_size)
    say(f"scoring {len(removable_units(spec.unet))} units on {num_samples} samples")
    errors = removal_errors(unet, removable_units(spec.unet), questions, lambda done, total: None)
    if budget.kind == "shape":
        choices = choose_shape(spec.unet, errors, find_spec(budget.student).unet, num_candidates)
    else:
        costs, to_save = _costs(spec.unet, unet, budget)
        choices = choose(spec.unet, errors, costs.units, to_save, num_candidates)
    maps = _maps(spec.unet, choices)
    (output / "maps").mkdir(parents=True, exist_ok=True)
    losses = partial(
        held_out_losses,
        task=task,
        source=source,
        num_samples=num_samples,
        batch_size=recipe.micro_batch_size,
        first_position=num_samples,
    )
    teacher_loss = losses({"teacher": lambda: unet})["teacher"]
    candidates = []
    for name, (layers, chosen_by) in maps.items():
        file = f"maps/{name}.toml"
        (output / file).write_text(layers.to_toml(), encoding="utf-8")
        student, _ = carve_model(teacher, layers, output / "students" / name, str(teacher), recipe.seed)
        folder = output / "students" / name
        carved = losses({name: partial(load_unet, folder, student.unet, torch.float32)})[name]
        kept = set(layers.blocks.values())
        prior = sum(error for unit, error in errors.items() if unit not in kept)
        with torch.device("meta"):
            size = count_parameters(build_unet(student.unet))
        candidate = Candidate(name, file, chosen_by, prior, size, carved)
        if trial_steps:
            directory = RunDirectory(f"trial-{name}", output)
            run_recipe(_trial(recipe, folder, teacher, output / file, trial_steps), directory, warn=say)
            recovered = losses({name: partial(_trained, directory, folder, student.unet, recipe.model.lora)})[name]
            candidate = replace(candidate, recovered_loss=recovered)
        say(_line(candidate))
        candidates.append(candidate)
    return _finish(teacher, budget, teacher_loss, trial_steps, num_samples, errors, candidates, output)


def _finish(
    teacher: Path,
    budget: Budget,
    teacher_loss: float,
    trial_steps: int,
    num_samples: int,
    errors: dict[str, float],
    candidates: Sequence[Candidate],
    output: Path,
) -> Proposal:
    ranked = tuple(sorted(candidates, key=loss_of))
    front = pareto({one.name: (one.unet_parameters, loss_of(one)) for one in ranked})
    name = teacher.resolve().name
    proposal = Proposal(name, str(budget), teacher_loss, trial_steps, num_samples, errors, ranked, tuple(front))
    (output / "proposal.json").write_text(json.dumps(proposal.to_dict(), indent=1) + "\n", encoding="utf-8")
    return proposal


def loss_of(candidate: Candidate) -> float:
    """Return what a candidate is ranked by: the loss after its trial, or that of the carved student."""
    return candidate.carved_loss if candidate.recovered_loss is None else candidate.recovered_loss


def _questions(task: Denoising, source: Any, num_samples: int, batch_size: int) -> list[Ask]:
    def asker(question: Question) -> Ask:
        return question.ask

    found: list[Ask] = []
    for start in range(0, num_samples, batch_size):
        positions = range(start, min(start + batch_size, num_samples))
        nobody = nn.ModuleDict()
        found.append(asker(task.question(nobody, source.load(positions), PositionRng(SEED, positions))))
    return found


def _costs(spec: UNetSpec, unet: nn.Module, budget: Budget) -> tuple[Costs, float]:
    """Return what each unit costs and how much has to be saved."""
    match budget.kind:
        case "shape":
            raise AssertionError("a shape has no budget")
        case "parameters":
            costs = parameter_costs(spec)
        case "macs":
            costs = mac_costs(spec)
        case "latency":
            costs = latency_costs(unet, spec)
    return costs, costs.whole - (budget.limit * costs.whole if budget.limit <= 1 else budget.limit)


def _maps(spec: UNetSpec, choices: Sequence[Choice]) -> dict[str, tuple[LayerMap, str]]:
    """Return the maps to try: the best by scores, and for the best one's shape those of the rules."""
    maps = {
        f"scores-{rank}": (map_of(spec, choice.removed, f"scores-{rank}", "least summed removal errors"), "scores")
        for rank, choice in enumerate(choices, start=1)
    }
    student = maps["scores-1"][0].student_spec(spec)
    for rule in RULES:
        maps[rule.replace(":", "-")] = (find_map(rule, student, spec), rule)
    return maps


def _changed(recipe: TrainRecipe, folder: Path, **changes: Any) -> TrainRecipe:
    """Return the recipe for another model folder, which brings all weights along."""
    model = recipe.model.model_copy(update={"base": str(folder), "weights": {}, "surgery": None})
    return recipe.model_copy(update={"model": model} | changes)


def _trial(recipe: TrainRecipe, student: Path, teacher: Path, file: Path, steps: int) -> TrainRecipe:
    """Return the recipe of a trial: the same data and losses, one teacher, a few steps."""
    objective: Any = recipe.objective
    one = objective.teachers[0].model_copy(
        update={"base": str(teacher), "weights": None, "map": str(file), "start_step": 0, "stop_step": None}
    )
    schedule = recipe.lr_schedule.model_copy(
        update={"warmup_steps": min(recipe.lr_schedule.warmup_steps, steps // 10), "decay_steps": None}
    )
    changes = {
        "steps": steps,
        "save_every": max(1, min(recipe.save_every, steps)),
        "sample_every": None,
        "lr_schedule": schedule,
        "objective": objective.model_copy(update={"teachers": (one,)}),
    }
    changed = _changed(recipe, student, **changes)
    return TrainRecipe.from_json(changed.to_json())  # copies are not validated, this is


def _trained(directory: RunDirectory, student: Path, spec: UNetSpec, lora: LoraSpec | None) -> nn.Module:
    """Return a trial's U-Net: its averaged weights, or the carved ones with the averaged adapters."""
    if lora is not None:
        adapted = load_unet(student, spec, torch.float32)
        add_lora(adapted, lora, 0)
        load_lora(adapted, directory.ema / LORA_FILE, "unet")
        return adapted
    unet = build_unet(spec)
    unet.load_state_dict(read_component("unet", locate(str(directory.ema), "unet")))
    return unet


def _line(candidate: Candidate) -> str:
    after = "" if candidate.recovered_loss is None else f", recovered {candidate.recovered_loss:.5f}"
    return (
        f"{candidate.name}: {candidate.unet_parameters:,} parameters, prior {candidate.prior:.4f}, "
        f"loss carved {candidate.carved_loss:.5f}{after}"
    )
