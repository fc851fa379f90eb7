"""Train and record some runs of an experiment, and its teachers, before the case that tells of all of them.

    python scripts/train_experiment.py benchmarks/experiments/distillation.toml --phase seeds --only random carved

Several of these share a machine where one case would wait: finalists that are named beforehand need no matrix.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vega_diffusion.benchmarks.experiment import Experiment, run_phase, teacher_records
from vega_diffusion.errors import VegaError, run_script


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, train and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--phase", choices=("matrix", "seeds"), required=True)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="configurations")
    parser.add_argument("--teachers", action="store_true", help="measure the teachers")
    parser.add_argument("--processes", type=int, default=1, help="of every training and drawing")
    parser.add_argument("--at-once", type=int, default=1, help="how many runs share the machine")
    parser.add_argument("--changes", nargs="*", default=[], metavar="PATH=VALUE", help="to the recipes of all runs")
    parser.add_argument("--recall", action="store_true", help="ask teachers once about each sample")
    given = parser.parse_args(argv)

    def work() -> Path:
        experiment = Experiment.read(
            given.experiment, given.processes, given.at_once, tuple(given.changes), given.recall
        )
        known = {one.name: one for one in experiment.spec.configurations}
        unknown = [name for name in given.only if name not in known]
        if unknown:
            raise VegaError(f"--only: {unknown[0]!r} is no configuration; allowed: {', '.join(known)}")
        if given.teachers:
            print(f"recorded: {', '.join(teacher_records(experiment, given.phase))}", file=sys.stderr)
        for name, seed, _ in run_phase(experiment, given.phase, tuple(known[name] for name in given.only)):
            print(f"recorded: {name}, seed {seed}", file=sys.stderr)
        return experiment.records.folder

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
