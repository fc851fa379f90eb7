"""`vega train`: run a recipe, or continue it where it stands."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class TrainArguments:
    """Train by a recipe. A run that was stopped or killed goes on exactly where its last state was saved."""

    recipe: tyro.conf.Positional[str]
    """Recipe file (TOML)."""
    set: Annotated[list[str], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH=VALUE")] = field(
        default_factory=list
    )
    """Change one value of the recipe, as in optimizer.lr=1e-4; may be repeated."""
    run_name: str | None = None
    """Name of the run's folder in $VEGA_HOME/runs (default: the recipe's file name)."""
    init_from: str | None = None
    """First weights: a model folder, a safetensors file, or run:NAME."""
    device: str = "auto"
    """auto, cpu, cuda, mps or xpu."""
    dry_run: bool = False
    """Print the plan (steps, samples, parameters, memory, time) and stop."""
    json: bool = False
    """Print one JSON object as the last line."""


def run(argv: list[str]) -> int:
    """Run the verb and return the exit code: 0, 143 or 130 after a signal (the state is saved)."""
    arguments = tyro.cli(TrainArguments, args=argv, prog="vega train")
    from vega_diffusion.specs.recipe import TrainRecipe

    path = Path(arguments.recipe)
    recipe = TrainRecipe.read(path, arguments.set)
    from vega_diffusion.training.guard import RunStopped
    from vega_diffusion.training.loop import print_to_stderr
    from vega_diffusion.training.run import run_recipe
    from vega_diffusion.training.run_directory import RunDirectory

    directory = RunDirectory(arguments.run_name or path.stem)
    try:
        result = run_recipe(
            recipe, directory, warn=print_to_stderr, init_from=arguments.init_from, device=arguments.device
        )
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    report = {"run": str(directory.path), "step": result.step, "seconds": round(result.seconds, 3)} | result.metrics
    print(json.dumps(report) if arguments.json else f"{result.step} steps done; weights in {directory.ema}")
    return 0
