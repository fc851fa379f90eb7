"""Case `distillation-matrix`: all configurations of the experiment, one seed each, ranked by the held-out loss."""

from __future__ import annotations

import sys
from pathlib import Path

from vega_diffusion.benchmarks.report import Measurement


def measure(
    experiment: Path = Path("benchmarks/experiments/distillation.toml"),
    processes: int = 1,
    at_once: int = 1,
    changes: tuple[str, ...] = (),
) -> Measurement:
    """Train what is not trained yet, then compute every student's loss on the same held-out samples.

    Args:
        experiment: The experiment's file.
        processes: Of every training.
        at_once: How many trainings share the machine; more than 1 fills a GPU.
        changes: To the recipes of all runs, as `path=value`: how the machine is used, as in `cuda_graphs=true`.

    Raises:
        VegaError: The experiment cannot be read, or a training failed.
    """
    from vega_diffusion.benchmarks.experiment import held_out, run_phase
    from vega_diffusion.specs.experiment import ExperimentSpec

    spec = ExperimentSpec.read(experiment).with_changes(changes)
    found = list(run_phase(spec, experiment.stem, "matrix", spec.configurations, processes, _say, at_once))
    references = {one.configuration: f"run:{one.run}" for one in found}
    losses = held_out(spec, references | {name.removeprefix("run:"): name for name in spec.teachers})
    order = sorted(references, key=lambda name: losses[name])
    return Measurement(
        samples={f"{name}_loss": [losses[name]] for name in references},
        summary={
            **{f"{name}_loss": round(losses[name], 5) for name in [*order, *(losses.keys() - references.keys())]},
            **{f"{one.configuration}_samples_per_s": one.samples_per_s for one in found},
            "finalists": ", ".join(spec.finalists({name: losses[name] for name in references})),
            "steps": spec.matrix.steps,
            "held_out_samples": spec.held_out_samples,
        },
        seeds=spec.matrix.seeds,
        protocol=f"{spec.matrix.steps} steps of 128 samples each, the same samples and noise for all (with "
        "`fixed_samples`, the first of them again and again); loss with "
        "min-SNR weights on held-out samples of scenes that no run has, the same for all; averaged weights",
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
