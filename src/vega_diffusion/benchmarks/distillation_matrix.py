"""Case `distillation-matrix`: all configurations of the experiment, one seed each, ranked by the held-out loss."""

from __future__ import annotations

from pathlib import Path

from vega_diffusion.benchmarks.report import Measurement


def measure(
    experiment: Path = Path("benchmarks/experiments/distillation.toml"),
    processes: int = 1,
    at_once: int = 1,
    changes: tuple[str, ...] = (),
    recall: bool = False,
    recorded: bool = False,
) -> Measurement:
    """Train what has no record yet, and compute every student's loss on the same held-out samples.

    Args:
        experiment: The experiment's file.
        processes: Of every training.
        at_once: How many trainings share the machine; more than 1 fills a GPU.
        changes: To the recipes of all runs, as `path=value`: how the machine is used, as in `cuda_graphs=true`.
        recall: Ask a teacher once about each sample and keep what it says in `$VEGA_HOME/outputs`, for all runs.
        recorded: Train nothing, and tell of what has a record so far.

    Raises:
        VegaError: The experiment cannot be read, or a training failed.
    """
    from vega_diffusion.benchmarks.experiment import Experiment, recorded_runs, run_phase, teacher_records
    from vega_diffusion.benchmarks.experiment_records import check_alike

    found = Experiment.read(experiment, processes, at_once, changes, recall)
    spec = found.spec
    done = recorded_runs(found) if recorded else run_phase(found, "matrix", spec.configurations)
    runs = {name: record for name, _, record in done}
    missing = [one.name for one in spec.configurations if one.name not in runs]
    teachers = teacher_records(found, "matrix", those_here=recorded)
    check_alike([*runs.values(), *teachers.values()])
    losses = {name: record.held_out_loss or 0.0 for name, record in runs.items()}
    order = sorted(losses, key=lambda name: losses[name])
    return Measurement(
        name="so-far" if missing else "",
        samples={f"{name}_loss": [loss] for name, loss in losses.items()},
        summary={
            **{f"{name}_loss": round(losses[name], 5) for name in order},
            **{f"{name}_loss": round(record.held_out_loss or 0.0, 5) for name, record in teachers.items()},
            **{f"{name}_samples_per_s": record.samples_per_s for name, record in runs.items()},
            **({"missing": ", ".join(missing)} if missing else {"finalists": ", ".join(spec.finalists(losses))}),
            "steps": spec.matrix.steps,
            "held_out_samples": spec.held_out_samples,
            "trained_on": ", ".join(sorted({record.hardware for record in runs.values()})),
        },
        seeds=spec.matrix.seeds,
        protocol=f"{spec.matrix.steps} steps of 128 samples each, the same samples and noise for all (with "
        "`fixed_samples`, the first of them again and again, if they are fewer); loss with "
        "min-SNR weights on held-out samples of scenes that no run has, the same for all; averaged weights; samples/s "
        "with whatever else the machine did" + ("; teachers' answers recalled" if recall else ""),
    )
