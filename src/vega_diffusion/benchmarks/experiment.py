"""Runs the configurations of an experiment by `vega train` and tells of every run how it ended.

A run that is done is not run again, so the command may be stopped at any moment and called anew. What is compared, and
how it is shown, is told by the cases `distillation_matrix` and `distillation_seeds`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from torch import nn

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.components import choose_device
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.build import build_denoising
from vega_diffusion.specs.experiment import ConfigurationSpec, ExperimentSpec, Phase
from vega_diffusion.specs.objective import DenoisingSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import find_spec, locate, read_component
from vega_diffusion.training.held_out import held_out_losses
from vega_diffusion.training.run import frozen_components
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sources import build_source

HELD_OUT_SEED = 991


@dataclass(frozen=True)
class RunOutcome:
    """One finished run.

    Args:
        configuration: Its name.
        seed: Its seed.
        run: Name of its run directory.
        samples_per_s: Of training, median over the logged steps.
    """

    configuration: str
    seed: int
    run: str
    samples_per_s: float


def run_name(experiment: str, phase: Phase, configuration: str, seed: int) -> str:
    """Return what a run is called."""
    return f"{experiment}-{phase}-{configuration}-{seed}"


def run_phase(
    experiment: ExperimentSpec,
    name: str,
    phase: Phase,
    configurations: tuple[ConfigurationSpec, ...],
    processes: int,
    say: Callable[[str], None],
    at_once: int = 1,
) -> Iterator[RunOutcome]:
    """Train what is not trained yet, a seed of all configurations after the other, and yield each run in that order.

    Args:
        experiment: What is compared.
        name: First part of the names of all runs.
        phase: Which of its phases.
        configurations: Those that take part.
        processes: Of every training.
        say: Called with a line for each run that begins.
        at_once: How many runs share the machine: a GPU is not filled by one mini network, a CPU is.

    Raises:
        VegaError: A run failed; what it said stands above.
    """
    of_phase = experiment.matrix if phase == "matrix" else experiment.seeds
    wanted = [(configuration, seed) for seed in of_phase.seeds for configuration in configurations]

    def finished(one: tuple[ConfigurationSpec, int]) -> RunOutcome:
        configuration, seed = one
        run = run_name(name, phase, configuration.name, seed)
        if not RunDirectory(run).is_done(experiment.recipe_of(configuration, phase, seed)):
            say(f"training {run}")
            _train(experiment, configuration, phase, seed, run, processes)
        return RunOutcome(configuration.name, seed, run, _rate(RunDirectory(run)))

    with ThreadPoolExecutor(at_once) as pool:
        try:
            yield from pool.map(finished, wanted)
        finally:
            pool.shutdown(cancel_futures=True)


def held_out(experiment: ExperimentSpec, references: dict[str, str]) -> dict[str, float]:
    """Return the held-out denoising losses of U-Nets, all on the same samples of scenes that no run has.

    Args:
        experiment: Whose data and frozen components are used.
        references: Name -> where the weights are: `run:NAME`, a known model.
    """
    recipe = TrainRecipe.read(Path(experiment.recipe), ["model.surgery=none"])
    count = experiment.held_out_samples
    data = recipe.data.model_copy(update={"seed": HELD_OUT_SEED, "num_scenes": count})
    recipe = recipe.model_copy(update={"data": data})
    spec = find_spec(recipe.model.base)
    frozen = frozen_components(recipe, spec)
    device = choose_device("auto")
    source = build_source(recipe, spec, device, frozen)
    task = build_denoising(DenoisingSpec(), spec, frozen)
    loaders = {name: partial(_unet, where) for name, where in references.items()}
    return held_out_losses(loaders, task, source, count, min(count, recipe.micro_batch_size), device=device)


def _unet(reference: str) -> nn.Module:
    """Return a U-Net in fp32, of the architecture that its config says."""
    from vega_diffusion.models.detect import unet_spec
    from vega_diffusion.models.layout import read_json

    path = locate(reference, "unet")
    config = path.parent / "config.json"
    unet = build_unet(unet_spec(read_json(config), str(config)))
    unet.load_state_dict(read_component("unet", path))
    return unet


def _train(
    experiment: ExperimentSpec, configuration: ConfigurationSpec, phase: Phase, seed: int, run: str, processes: int
) -> None:
    changes = experiment.changes_of(configuration, phase, seed)
    command = [sys.executable, "-m", "vega_diffusion.cli.main", "train", configuration.recipe or experiment.recipe]
    command += ["--run-name", run, "--processes", str(processes)]
    command += [part for change in changes for part in ("--set", change)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise VegaError(f"{run}: training ended early; see above, then run the command again, it goes on there")


def _rate(directory: RunDirectory) -> float:
    lines = [json.loads(line) for line in directory.metrics.read_text(encoding="utf-8").splitlines()]
    rates = [line["samples_per_s"] for line in lines if "samples_per_s" in line]
    return round(median(rates), 1) if rates else 0.0
