"""Case `distillation-seeds`: the experiment's finalists with several seeds, drawn and scored on scenes-dev."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.comparison import interval_text
from vega_diffusion.benchmarks.report import Measurement
from vega_diffusion.errors import MissingFile, VegaError

if TYPE_CHECKING:
    from vega_diffusion.evaluation.results import EvaluationResult
    from vega_diffusion.specs.experiment import ExperimentSpec

EXPERIMENT = Path("benchmarks/experiments/distillation.toml")
SCORED_IN = "float32"
"""On every device, so that students drawn on a GPU and on a CPU are drawn in the same numbers."""


def measure(
    experiment: Path = EXPERIMENT,
    processes: int = 1,
    limit: int | None = None,
    at_once: int = 1,
    changes: tuple[str, ...] = (),
) -> Measurement:
    """Train, export and score what is not yet, teachers too; every seed's score is kept.

    Args:
        experiment: The experiment's file.
        processes: Of every training and drawing.
        limit: Prompts of each kind, for a quick look; all unless given.
        at_once: How many runs, and then scorings, share the machine; more than 1 fills a GPU.
        changes: To the recipes of all runs, as `path=value`: how the machine is used, as in `cuda_graphs=true`.

    Raises:
        MissingFile: The matrix was not run.
        VegaError: The experiment cannot be read, or a training failed.
    """
    from vega_diffusion.benchmarks.experiment import held_out, run_name, run_phase
    from vega_diffusion.specs.experiment import ExperimentSpec
    from vega_diffusion.training.run_directory import RunDirectory

    spec = ExperimentSpec.read(experiment).with_changes(changes)
    seed = spec.matrix.seeds[0]
    runs = {one.name: run_name(experiment.stem, "matrix", one.name, seed) for one in spec.configurations}
    recipes = {run: spec.recipe_of(spec.named(name), "matrix", seed) for name, run in runs.items()}
    if not all(RunDirectory(run).is_done(recipe) for run, recipe in recipes.items()):
        raise MissingFile("distillation-matrix: not finished; run it first, it names the finalists")
    losses = held_out(spec, {name: f"run:{run}" for name, run in runs.items()})
    chosen = tuple(spec.named(name) for name in spec.finalists(losses))
    scores: dict[str, list[float]] = {}
    kinds: dict[str, list[dict[str, float]]] = {}
    styles: dict[str, dict[str, float]] = {}
    results: dict[tuple[str, int], EvaluationResult] = {}
    trained = list(run_phase(spec, experiment.stem, "seeds", chosen, processes, _say, at_once))
    wanted = [*(f"run:{one.run}" for one in trained), *spec.teachers]
    if at_once > 1:
        _score_at_once(wanted, limit, at_once)
    for one in trained:
        result, seen = _scored(f"run:{one.run}", processes, limit)
        assert result.overall is not None
        scores.setdefault(one.configuration, []).append(result.overall)
        kinds.setdefault(one.configuration, []).append({str(k): v for k, v in {**result.kinds, **result.rows}.items()})
        styles.setdefault(one.configuration, seen)
        results[one.configuration, one.seed] = result
    taught = {name.removeprefix("run:"): _scored(name, processes, limit) for name in spec.teachers}
    return Measurement(
        name="" if limit is None else f"limit-{limit}",
        samples={f"{name}_overall": values for name, values in scores.items()},
        summary={
            **{f"{name}_overall": round(mean(values), 4) for name, values in scores.items()},
            **{f"{name}_{kind}": value for name, rows in kinds.items() for kind, value in _means(rows).items()},
            **{f"{name}_overall": result.overall or 0.0 for name, (result, _) in taught.items()},
            **{f"{name}_{kind}": v for name, (r, _) in taught.items() for kind, v in {**r.kinds, **r.rows}.items()},
            **{f"{name}_style_{style}": share for name, seen in styles.items() for style, share in seen.items()},
            **{f"{name}_style_{style}": share for name, (_, seen) in taught.items() for style, share in seen.items()},
            **_differences(results, spec),
            "steps": spec.seeds.steps,
            **({} if limit is None else {"prompts_of_a_kind": limit}),
        },
        seeds=spec.seeds.seeds,
        protocol=f"{spec.seeds.steps} steps of 128 samples each; averaged weights, all pictures of scenes-dev; "
        "differences are paired by prompt and seed, and their intervals are over prompts, for these very trainings; "
        "style: what the checker's style head says of pictures whose prompt names no style, first seed",
    )


def _scored(reference: str, processes: int, limit: int | None) -> tuple[EvaluationResult, dict[str, float]]:
    """Evaluate a run or a model, and count the styles of its pictures."""
    from vega_diffusion.evaluation.evaluate import EvaluationRequest, evaluate

    _say(f"scoring {reference}")
    request = EvaluationRequest(model=_model(reference), split="dev", processes=processes, limit=limit, dtype=SCORED_IN)
    done = evaluate(request)
    return done.result, style_shares(done.folder)


def _score_at_once(references: Sequence[str], limit: int | None, at_once: int) -> None:
    """Evaluate several by programs of their own; `_scored` then finds them finished.

    Raises:
        VegaError: One of them failed; what it said stands above.
    """

    def score(reference: str) -> None:
        command = [sys.executable, "-m", "vega_diffusion.cli.main", "evaluate", _model(reference), "--split", "dev"]
        command += ["--dtype", SCORED_IN, *([] if limit is None else ["--limit", str(limit)])]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise VegaError(f"{reference}: scoring ended early; see above, then run the command again")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(score, references))


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


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {kind: round(mean(row[kind] for row in rows), 4) for kind in rows[0]}


def _differences(results: Mapping[tuple[str, int], EvaluationResult], spec: ExperimentSpec) -> dict[str, Any]:
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


def _say(line: str) -> None:
    print(line, file=sys.stderr)
