"""`vega train`: run a recipe, or continue it where it stands."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vega_diffusion.cli.arguments import parse
from vega_diffusion.errors import InvalidValue, MissingFile

if TYPE_CHECKING:
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.training.loop import TrainResult
    from vega_diffusion.training.run_directory import RunDirectory

# Which of a recipe's stages the ranks of one launch are for.
_STAGE = "VEGA_STAGE"
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


@dataclass
class TrainArguments:
    """Train by a recipe. A run that was stopped or killed goes on exactly where its last state was saved."""

    recipe: tyro.conf.Positional[str]
    """Recipe file (TOML)."""
    set: Annotated[list[str], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")] = dataclasses.field(
        default_factory=list
    )
    """Change one value of the recipe, as in optimizer.lr=1e-4; may be repeated."""
    run_name: str | None = None
    """Name of the run's folder in $VEGA_HOME/runs (default: the recipe's file name)."""
    init_from: str | None = None
    """First weights: a model folder, a safetensors file, a known model, or run:NAME."""
    device: str = "auto"
    """auto, cpu, cuda, mps or xpu."""
    processes: int = 1
    """Processes on this machine; each takes its share of every batch (two beat one with two threads on a CPU)."""
    dry_run: bool = False
    """Print the plan (steps, samples, parameters, memory, time) and stop."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(argv: list[str]) -> int:
    """Run the verb and return the exit code: 0, 143 or 130 after a signal (the state is saved)."""
    arguments = parse("train", TrainArguments, argv)
    if arguments.device not in DEVICES:
        raise InvalidValue("--device", arguments.device, f"one of: {', '.join(DEVICES)}", "choose one of them")
    if arguments.processes < 1:
        raise InvalidValue("--processes", arguments.processes, "1 or more", "raise it")
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.specs.stages import expand

    path = Path(arguments.recipe)
    recipe = TrainRecipe.read(path, arguments.set)
    chain = expand(recipe, arguments.run_name or path.stem)
    if arguments.init_from is not None and len(chain) > 1:
        raise InvalidValue("--init-from", arguments.init_from, "nothing with stages", "name model.surgery.teacher")
    if arguments.dry_run:
        return _plan(chain, arguments)
    if arguments.processes > 1 and "LOCAL_RANK" not in os.environ:
        from vega_diffusion.training.launch import launch

        command = [sys.executable, "-m", "vega_diffusion.cli.main", "train", *argv]
        codes = (launch(command, arguments.processes, {_STAGE: str(number)}) for number in _ahead(chain))
        return next((code for code in codes if code), 0)
    stages = [int(os.environ[_STAGE])] if _STAGE in os.environ else _ahead(chain)
    codes = (_run_one(*chain[number], arguments) for number in stages)
    return next((code for code in codes if code), 0)


def _ahead(chain: list[tuple[str, TrainRecipe]]) -> list[int]:
    """Return the numbers of the stages that are not done; the last one always is run, to say how it stands."""
    from vega_diffusion.training.run_directory import RunDirectory

    done = [RunDirectory(name).is_done(recipe) for name, recipe in chain[:-1]]
    return [number for number, finished in enumerate([*done, False]) if not finished]


def _run_one(name: str, recipe: TrainRecipe, arguments: TrainArguments) -> int:
    """Train one recipe and return the exit code."""
    from vega_diffusion.training.guard import RunStopped
    from vega_diffusion.training.launch import end_with_launcher
    from vega_diffusion.training.run_directory import RunDirectory

    end_with_launcher()
    directory = RunDirectory(name)
    try:
        result = _train(recipe, directory, arguments)
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    if os.environ.get("RANK", "0") == "0":
        _report(result, directory, arguments)
    return 0


def _train(recipe: TrainRecipe, directory: RunDirectory, arguments: TrainArguments) -> TrainResult:
    from vega_diffusion.training.loop import print_to_stderr
    from vega_diffusion.training.run import run_recipe
    from vega_diffusion.training.samples import sample_maker

    return run_recipe(
        recipe,
        directory,
        warn=print_to_stderr,
        init_from=arguments.init_from,
        device=arguments.device,
        sample_maker=sample_maker(recipe),
    )


def _plan(chain: list[tuple[str, TrainRecipe]], arguments: TrainArguments) -> int:
    from vega_diffusion.training.data_report import report_data
    from vega_diffusion.training.loop import make_accelerator
    from vega_diffusion.training.planner import plan_run

    # A plan may be for another machine: fp16, which a CPU does not train in, is no obstacle to it.
    precise = chain[0][1].model_copy(update={"mixed_precision": "no"})
    device = make_accelerator(precise, arguments.device).device
    plans = {name: plan_run(recipe, device) for name, recipe in chain}
    try:
        data = report_data(chain[-1][1])
    except MissingFile as missing:  # a plan may be for another machine, where the pictures lie
        print(f"the plan says nothing of the pictures: {missing}", file=sys.stderr)
        data = None
    if arguments.json:
        last = plans[chain[-1][0]].to_dict() | ({"data": data.to_dict()} if data else {})
        stages = {name: plans[name].to_dict() for name, _ in chain[:-1]}
        print(json.dumps(last | ({"stages": stages} if stages else {})))
        return 0
    for name, plan in plans.items():
        print(f"{name}\n{plan}" if len(plans) > 1 else plan)
    if data is not None:
        print(data)
    return 0


def _report(result: TrainResult, directory: RunDirectory, arguments: TrainArguments) -> None:
    if arguments.json:
        report = {"run": str(directory.path), "step": result.step, "seconds": round(result.seconds, 3)}
        print(json.dumps(report | result.metrics))
    else:
        print(f"{result.step} steps done; averaged weights in {directory.ema}")
