"""Runs the configurations of an experiment by `vega train` and keeps a record of each (`experiment_records`).

What has a record is not run again, nor is a run that is done trained again, so the command may be stopped at any
moment and called anew. What is compared, and how it is shown, is told by the cases `distillation_matrix` and
`distillation_seeds`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from torch import nn

from vega_diffusion.benchmarks.experiment_records import (
    Record,
    Records,
    Score,
    digest_of,
    new_record,
    weights_of,
    weights_path,
)
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.inference.components import choose_device
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.build import build_denoising
from vega_diffusion.specs.experiment import ConfigurationSpec, ExperimentSpec, Phase
from vega_diffusion.specs.objective import DenoisingSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import find_spec, locate, read_component
from vega_diffusion.training.held_out import held_out_losses
from vega_diffusion.training.run import frozen_components, references
from vega_diffusion.training.run_directory import RunDirectory, unfinished
from vega_diffusion.training.sources import build_source

HELD_OUT_SEED = 991
SCORED_IN = "float32"
"""On every device, so that students drawn on a GPU and on a CPU are drawn in the same numbers."""


@dataclass(frozen=True)
class Experiment:
    """An experiment and how this machine runs it.

    Args:
        file: The experiment's file; its stem begins the names of all runs, its records lie beside it.
        spec: What is in it, with the machine's own changes.
        processes: Of every training and drawing.
        at_once: How many runs share the machine: a GPU is not filled by one mini network, a CPU is.
        limit: Prompts of each kind that are scored; None scores all.
    """

    file: Path
    spec: ExperimentSpec
    processes: int = 1
    at_once: int = 1
    limit: int | None = None

    @classmethod
    def read(
        cls, file: Path, processes: int, at_once: int, changes: tuple[str, ...], recall: bool, limit: int | None = None
    ) -> Experiment:
        """Read an experiment's file.

        Args:
            file: The file.
            processes: Of every training and drawing.
            at_once: How many runs share the machine.
            changes: To the recipes of all runs.
            recall: Whether teachers are asked once about each sample, for all runs that take it.
            limit: Prompts of each kind that are scored.
        """
        spec = ExperimentSpec.read(file).with_changes(changes).model_copy(update={"recall": recall})
        return cls(file, spec, processes, at_once, limit)

    @property
    def records(self) -> Records:
        """What is kept of its runs."""
        return Records(self.file)


def run_phase(
    experiment: Experiment, phase: Phase, configurations: tuple[ConfigurationSpec, ...]
) -> Iterator[tuple[str, int, Record]]:
    """Train what is not trained yet, a seed of all configurations after the other; yield names, seeds, records.

    Records come in that order; those of the matrix have a held-out loss, those of the seeds a score. A run that fails
    leaves the others be.

    Raises:
        VegaError: Runs failed, said when the others are done; what they said stands above.
    """
    spec, failed = experiment.spec, list[VegaError]()
    seeds = (spec.matrix if phase == "matrix" else spec.seeds).seeds
    wanted = [(configuration, seed) for seed in seeds for configuration in configurations]
    with ThreadPoolExecutor(experiment.at_once) as pool:
        found = [pool.submit(_recorded, experiment, phase, *one) for one in wanted]
        try:
            for (configuration, seed), future in zip(wanted, found, strict=True):
                try:
                    yield configuration.name, seed, future.result()
                except VegaError as error:
                    say(f"error: {error}")
                    failed.append(error)
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        raise VegaError(f"{len(failed)} of {len(wanted)} runs failed, the first: {failed[0]}") from failed[0]


def _recorded(experiment: Experiment, phase: Phase, configuration: ConfigurationSpec, seed: int) -> Record:
    """Return the record of a run; trains, measures and writes it where there is none."""
    found = find_record(experiment, phase, configuration, seed)
    if found is not None:
        return found
    recipe = experiment.spec.recipe_of(configuration, phase, seed)
    for _, reference in references(recipe):
        _check_finished(reference)
    run = f"{experiment.file.stem}-{phase}-{configuration.name}-{seed}"
    if not RunDirectory(run).is_done(recipe):
        say(f"training {run}")
        _train(experiment, configuration, phase, seed, run)
    name = _record_name(experiment, phase, f"{configuration.name}-{seed}")
    record = new_record(name, recipe, weights_of(recipe), _rate(RunDirectory(run)))
    return experiment.records.write(_measured(experiment, phase, f"run:{run}", record))


def _check_finished(reference: str) -> None:
    """Refuse a teacher whose run is not done: its record would be of weights that no recipe makes.

    Raises:
        VegaError: It is not.
    """
    if so_far := unfinished(reference):
        raise VegaError(f"{so_far}; train it to its end before it teaches or is measured")


def find_record(experiment: Experiment, phase: Phase, configuration: ConfigurationSpec, seed: int) -> Record | None:
    """Return the record of a run, if there is one that still stands."""
    recipe = experiment.spec.recipe_of(configuration, phase, seed)
    name = _record_name(experiment, phase, f"{configuration.name}-{seed}")
    return experiment.records.find(name, recipe, weights_of(recipe))


def recorded_runs(experiment: Experiment) -> Iterator[tuple[str, int, Record]]:
    """Yield name, seed and record of what the matrix has so far."""
    for configuration in experiment.spec.configurations:
        for seed in experiment.spec.matrix.seeds:
            record = find_record(experiment, "matrix", configuration, seed)
            if record is not None:
                yield configuration.name, seed, record


def teacher_records(experiment: Experiment, phase: Phase, those_here: bool = False) -> dict[str, Record]:
    """Return the records of the teachers by their names, with a held-out loss or a score as the phase asks for.

    Args:
        experiment: Whose.
        phase: What is measured.
        those_here: Leave out teachers that are not here and have no record.

    Raises:
        MissingFile: There is such a teacher, and it is not to be left out.
    """

    def found(reference: str) -> tuple[str, Record | None]:
        called, path = reference.removeprefix("run:"), weights_path(reference, "unet")
        name = _record_name(experiment, phase, f"teacher-{called}")
        made_of = {} if path is None else {f"unet of {reference}": digest_of(path)}
        record = experiment.records.find(name, None, made_of)
        if record is not None or (path is None and those_here):
            return called, record
        if path is None:
            raise MissingFile(f"{reference}: no unet weights there; train that recipe first")
        _check_finished(reference)
        measured = _measured(experiment, phase, reference, new_record(name, None, made_of))
        return called, experiment.records.write(measured)

    with ThreadPoolExecutor(experiment.at_once) as pool:
        records = list(pool.map(found, experiment.spec.teachers))
    return {called: record for called, record in records if record is not None}


def _record_name(experiment: Experiment, phase: Phase, what: str) -> str:
    """Return what a record is called; a quick look at few prompts has records of its own."""
    few = "" if experiment.limit is None else f"-limit-{experiment.limit}"
    return f"{phase}-{what}{few}"


def _measured(experiment: Experiment, phase: Phase, reference: str, record: Record) -> Record:
    """Return a record with what its phase measures: the held-out loss in the matrix, the score with seeds."""
    if phase == "matrix":
        return record.model_copy(update={"held_out_loss": held_out(experiment.spec, reference)})
    return record.model_copy(update={"score": _score(reference, experiment)})


def _score(reference: str, experiment: Experiment) -> Score:
    """Evaluate a run or a model by a program of its own, and count the styles of its pictures.

    Raises:
        VegaError: It failed; what it said stands above.
    """
    from vega_diffusion.evaluation.results import read_result

    say(f"scoring {reference}")
    command = [sys.executable, "-m", "vega_diffusion.cli.main", "evaluate", _model(reference), "--json"]
    command += ["--split", "dev", "--dtype", SCORED_IN, "--processes", str(experiment.processes)]
    command += [] if experiment.limit is None else ["--limit", str(experiment.limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise VegaError(f"{reference}: scoring ended early; see above, then run the command again")
    folder = Path(json.loads(done.stdout.splitlines()[-1])["folder"])
    return Score.of(read_result(folder, reference), style_shares(folder))


def _model(reference: str) -> str:
    """Return what `vega evaluate` calls a run or a model; a run is exported as a model folder."""
    from vega_diffusion.training.publish import export_run
    from vega_diffusion.training.run_directory import vega_home

    if not reference.startswith("run:"):
        return reference
    name = reference.removeprefix("run:")
    folder = vega_home() / "experiments" / name
    export_run(name, folder, name, ("fp16",))  # always: a run of that name may have been trained anew
    return str(folder)


def style_shares(folder: Path) -> dict[str, float]:
    """Return the share of every style among a finished evaluation's pictures whose prompt names no style."""
    from vega_diffusion.evaluation.run_folder import JudgedPicture

    lines = (folder / "judged.jsonl").read_text(encoding="utf-8").splitlines()
    pictures = [one for one in map(JudgedPicture.from_json, lines) if one.kind not in ("style", "natural")]
    found = Counter(one.finding.style for one in pictures)
    return {style: round(number / len(pictures), 4) for style, number in found.most_common()}


def held_out(experiment: ExperimentSpec, reference: str) -> float:
    """Return the held-out denoising loss of a U-Net, on the same samples for all, of scenes that no run has.

    Args:
        experiment: Whose data and frozen components are used.
        reference: Where the weights are: `run:NAME`, a known model.
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
    loaders = {reference: partial(_unet, reference)}
    losses = held_out_losses(loaders, task, source, count, min(count, recipe.micro_batch_size), device=device)
    return losses[reference]


def _unet(reference: str) -> nn.Module:
    """Return a U-Net in fp32, of the architecture that its config says."""
    from vega_diffusion.models.detect import unet_spec
    from vega_diffusion.models.layout import read_json

    path = locate(reference, "unet")
    config = path.parent / "config.json"
    unet = build_unet(unet_spec(read_json(config), str(config)))
    unet.load_state_dict(read_component("unet", path))
    return unet


def _train(experiment: Experiment, configuration: ConfigurationSpec, phase: Phase, seed: int, run: str) -> None:
    spec = experiment.spec
    changes = spec.changes_of(configuration, phase, seed)
    command = [sys.executable, "-m", "vega_diffusion.cli.main", "train", configuration.recipe or spec.recipe]
    command += ["--run-name", run, "--processes", str(experiment.processes)]
    command += [part for change in changes for part in ("--set", change)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise VegaError(f"{run}: training ended early; see above, then run the command again, it goes on there")


def _rate(directory: RunDirectory) -> float:
    lines = [json.loads(line) for line in directory.metrics.read_text(encoding="utf-8").splitlines()]
    rates = [line["samples_per_s"] for line in lines if "samples_per_s" in line]
    return round(median(rates), 1) if rates else 0.0


def say(line: str) -> None:
    """Tell how far an experiment is, beside its result."""
    print(line, file=sys.stderr)
