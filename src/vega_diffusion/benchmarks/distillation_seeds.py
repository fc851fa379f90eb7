"""Case `distillation-seeds`: the experiment's finalists with several seeds, drawn and scored on scenes-dev."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.comparison import interval_text
from vega_diffusion.benchmarks.report import Measurement
from vega_diffusion.errors import MissingFile

if TYPE_CHECKING:
    from vega_diffusion.benchmarks.experiment import Experiment
    from vega_diffusion.benchmarks.experiment_records import Score
    from vega_diffusion.specs.experiment import ExperimentSpec

EXPERIMENT = Path("benchmarks/experiments/distillation.toml")


def measure(
    experiment: Path = EXPERIMENT,
    processes: int = 1,
    limit: int | None = None,
    at_once: int = 1,
    changes: tuple[str, ...] = (),
    recall: bool = False,
) -> Measurement:
    """Train, export and score what has no record yet, teachers too; every seed's score is kept.

    Args:
        experiment: The experiment's file.
        processes: Of every training and drawing.
        limit: Prompts of each kind, for a quick look; all unless given.
        at_once: How many runs, each with its scoring, share the machine; more than 1 fills a GPU.
        changes: To the recipes of all runs, as `path=value`: how the machine is used, as in `cuda_graphs=true`.
        recall: Ask a teacher once about each sample and keep what it says in `$VEGA_HOME/outputs`, for all runs.

    Raises:
        MissingFile: The matrix was not run.
        VegaError: The experiment cannot be read, or a training failed.
    """
    from vega_diffusion.benchmarks.experiment import Experiment, run_phase, teacher_records
    from vega_diffusion.benchmarks.experiment_records import check_alike

    found = Experiment.read(experiment, processes, at_once, changes, recall, limit)
    spec = found.spec
    chosen = tuple(spec.named(name) for name in spec.finalists(_matrix_losses(found)))
    trained = [(name, seed, record) for name, seed, record in run_phase(found, "seeds", chosen)]
    teachers = teacher_records(found, "seeds")
    check_alike([*(record for _, _, record in trained), *teachers.values()])
    results = {(name, seed): record.score for name, seed, record in trained if record.score is not None}
    scores = {one.name: [results[one.name, seed] for seed in spec.seeds.seeds] for one in chosen}
    taught = {name: record.score for name, record in teachers.items() if record.score is not None}
    return Measurement(
        name="" if limit is None else f"limit-{limit}",
        samples={f"{name}_overall": [one.overall for one in found] for name, found in scores.items()},
        summary={
            **{f"{name}_overall": round(mean(one.overall for one in found), 4) for name, found in scores.items()},
            **{f"{name}_{kind}": value for name, found in scores.items() for kind, value in _kinds(found).items()},
            **{f"{name}_overall": one.overall for name, one in taught.items()},
            **{f"{name}_{kind}": value for name, one in taught.items() for kind, value in _kinds([one]).items()},
            **{f"{name}_style_{style}": v for name, found in scores.items() for style, v in found[0].styles.items()},
            **{f"{name}_style_{style}": v for name, one in taught.items() for style, v in one.styles.items()},
            **_differences(results, spec),
            "steps": spec.seeds.steps,
            "trained_on": ", ".join(sorted({record.hardware for _, _, record in trained})),
            **({} if limit is None else {"prompts_of_a_kind": limit}),
        },
        seeds=spec.seeds.seeds,
        protocol=f"{spec.seeds.steps} steps of 128 samples each; averaged weights, all pictures of scenes-dev; "
        "differences are paired by prompt and seed, and their intervals are over prompts, for these very trainings; "
        "style: what the checker's style head says of pictures whose prompt names no style, first seed",
    )


def _matrix_losses(experiment: Experiment) -> dict[str, float]:
    """Return the held-out losses of the first phase.

    Raises:
        MissingFile: It is not finished.
    """
    from vega_diffusion.benchmarks.experiment import find_record

    spec, losses, whole = experiment.spec, {}, replace(experiment, limit=None)
    for one in spec.configurations:
        record = find_record(whole, "matrix", one, spec.matrix.seeds[0])
        if record is None or record.held_out_loss is None:
            raise MissingFile("distillation-matrix: not finished; run it first, it names the finalists")
        losses[one.name] = record.held_out_loss
    return losses


def _kinds(scores: list[Score]) -> dict[str, float]:
    """Return the means over seeds of each kind and row."""
    rows: list[dict[Any, float]] = [{**one.kinds, **one.rows} for one in scores]
    return {str(kind): round(mean(row[kind] for row in rows), 4) for kind in rows[0]}


def _differences(results: Mapping[tuple[str, int], Score], spec: ExperimentSpec) -> dict[str, Any]:
    """Return paired differences over the prompts of all seeds: everything less the baseline, and the named pairs."""
    from vega_diffusion.evaluation.compare import compare_seeds

    found: dict[str, Any] = {}
    names = list(dict.fromkeys(name for name, _ in results))
    wanted = [(spec.baseline, name) for name in names if name != spec.baseline]
    for first, second in (*wanted, *(pair for pair in spec.pairs if set(pair) <= set(names))):
        difference = compare_seeds([(results[first, seed], results[second, seed]) for seed in spec.seeds.seeds])
        found[f"{second}_less_{first}"] = difference.difference
        found[f"{second}_less_{first}_interval"] = interval_text(difference.interval)
    return found
