"""What the experiment on distillation showed, as Markdown tables and a figure, from its result files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vega_diffusion.benchmarks.report import Result
from vega_diffusion.errors import Unavailable
from vega_diffusion.specs.experiment import ExperimentSpec

MATRIX, SEEDS, STEPS = "distillation-matrix", "distillation-seeds", "distillation-step"
SO_FAR = f"{MATRIX}-so-far"
_INK, _POINT, _TEACHER, _LIGHT = "#1d2330", "#2f6fdb", "#d1603d", "#c9d1dc"


def experiment_tables(spec: ExperimentSpec, results: Sequence[Result]) -> str:
    """Return the tables of the newest results of both phases; empty where there are none."""
    parts = []
    matrix, seeds = _newest(results, MATRIX, SO_FAR), _newest(results, SEEDS)
    if matrix is not None:
        parts.append(_matrix_table(spec, matrix))
    if seeds is not None:
        parts.append(_seeds_table(spec, seeds))
    return "\n\n".join(parts)


def draw_experiment(spec: ExperimentSpec, results: Sequence[Result], path: Path) -> None:
    """Write the figure: losses of the matrix, and scores in which every seed is a point.

    Args:
        spec: The experiment.
        results: Of both phases; the second may be missing.
        path: A PNG, SVG or PDF file.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("figure: matplotlib is not installed; pip install 'vega-diffusion[plots]'") from error
    matrix, seeds = _newest(results, MATRIX, SO_FAR), _newest(results, SEEDS)
    panels = [part for part in (matrix, seeds) if part is not None]
    figure = Figure(figsize=(7.2 * len(panels), 4.8), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        of_matrix = result.case != SEEDS
        values = _samples(result, "_loss" if of_matrix else "_overall")
        scale = 1.0 if of_matrix else 100.0
        names = sorted(values, key=lambda name: sum(values[name]) / len(values[name]), reverse=of_matrix)
        for place, name in enumerate(names):
            found = [scale * value for value in values[name]]
            mean = sum(found) / len(found)
            if len(found) > 1:
                axes.plot([mean] * 2, [place - 0.3, place + 0.3], color=_LIGHT, linewidth=3, solid_capstyle="round")
            axes.plot(found, [place] * len(found), "o", color=_POINT, alpha=0.75, markersize=7)
        axes.set_yticks(range(len(names)), [spec.named(name).title for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)  # an annotation outside of it would be left out
        suffix = "loss" if of_matrix else "overall"
        for teacher in spec.teachers:
            called = teacher.removeprefix("run:")
            value = result.measurement.summary.get(f"{called}_{suffix}")
            if isinstance(value, int | float):
                axes.axvline(scale * value, color=_TEACHER, linestyle=":", linewidth=1)
                axes.annotate(called, (scale * value, -0.5), rotation=90, fontsize=8, color=_TEACHER, va="bottom")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=_LIGHT, linewidth=0.5)
        steps = f"{int(result.measurement.summary['steps']) * 128:,} samples"
        axes.set_xlabel("held-out denoising loss" if of_matrix else "scenes-dev, % of pictures", color=_INK)
        every = "one seed" if of_matrix else f"{len(result.measurement.seeds)} seeds, each a point"
        axes.set_title(f"{steps}, {every}", loc="left", fontsize=10, color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _matrix_table(spec: ExperimentSpec, result: Result) -> str:
    summary, losses = result.measurement.summary, _samples(result, "_loss")
    missing = f" So far; not yet: {summary['missing']}." if "missing" in summary else ""
    lines = [f"`{result.command}`: {summary['steps']} steps of 128 samples, one seed.{missing}", ""]
    recalled = " (teachers' answers recalled, beside other work)" if "--recall " in f"{result.command} " else ""
    lines += [f"| configuration | held-out loss | samples/s{recalled} |", "|---|---|---|"]
    for name in sorted(losses, key=lambda one: losses[one][0]):
        rate = summary.get(f"{name}_samples_per_s", "")
        lines.append(f"| `{name}`: {spec.named(name).title} | {losses[name][0]:.5f} | {rate} |")
    for teacher in spec.teachers:
        called = teacher.removeprefix("run:")
        if f"{called}_loss" in summary:
            lines.append(f"| {called}, a teacher | {summary[f'{called}_loss']:.5f} | |")
    return "\n".join(lines)


def _seeds_table(spec: ExperimentSpec, result: Result) -> str:
    summary, scores = result.measurement.summary, _samples(result, "_overall")
    head = f"`python -m vega_diffusion.benchmarks {SEEDS}`: {summary['steps']} steps of 128 samples, seeds "
    lines = [head + ", ".join(map(str, result.measurement.seeds)) + ".", ""]
    lines += [
        f"| configuration | scenes-dev, %, each seed | mean | less `{spec.baseline}` (95 %) |",
        "|---|---|---|---|",
    ]
    for name in sorted(scores, key=lambda one: -sum(scores[one])):
        each = ", ".join(f"{100 * value:.1f}" for value in scores[name])
        mean = 100 * sum(scores[name]) / len(scores[name])
        difference = _difference(summary, name, spec.baseline)
        lines.append(f"| `{name}`: {spec.named(name).title} | {each} | {mean:.1f} | {difference} |")
    for teacher in spec.teachers:
        called = teacher.removeprefix("run:")
        value = summary.get(f"{called}_overall")
        if isinstance(value, int | float):
            lines.append(f"| {called}, a teacher | {100 * value:.1f} | {100 * value:.1f} | |")
    pairs = [f"`{b}` less `{a}`: {_difference(summary, b, a)}" for a, b in spec.pairs if f"{b}_less_{a}" in summary]
    return "\n".join(lines) + ("\n\n" + "; ".join(pairs) + "." if pairs else "")


def _difference(summary: dict[str, float | int | str], name: str, other: str) -> str:
    value = summary.get(f"{name}_less_{other}")
    if not isinstance(value, int | float):
        return ""
    low, high = (100 * float(part) for part in str(summary[f"{name}_less_{other}_interval"]).split(" to "))
    return f"{100 * value:+.1f} ({low:+.1f} to {high:+.1f})"


def _samples(result: Result, suffix: str) -> dict[str, list[float]]:
    samples = result.measurement.samples
    return {name.removesuffix(suffix): values for name, values in samples.items() if name.endswith(suffix)}


def _newest(results: Sequence[Result], *cases: str) -> Result | None:
    return max((one for one in results if one.case in cases), key=lambda one: one.finished, default=None)


STEP_TITLES = {
    "task": "no teacher",
    "output_recalled": "teacher's predictions, recalled (`fixed_samples`)",
    "output": "teacher's predictions",
    "features_recalled": "predictions and features of modules, recalled",
    "features": "predictions and features of modules",
    "task_without_caches": "no teacher, nor caches: autoencoder and text encoders in the step",
    "features_without_caches": "predictions and features, no caches",
}


def steps_table(results: Sequence[Result]) -> str:
    """Return the table of what a teacher costs in a step, from the newest result; empty where there is none."""
    result = _newest(results, STEPS)
    if result is None:
        return ""
    summary, machine = result.measurement.summary, result.hardware
    where = machine.accelerator or f"{machine.processor} with {machine.instructions}"
    lines = [
        f"Whole steps of {summary['batch']} samples with the optimizer, vega-mini taught by mini-sdxl, one thread of "
        f"{where} (`{result.command}`):",
        "",
        "| step | samples/s | times the step without a teacher | peak memory, GiB |",
        "|---|---|---|---|",
    ]
    for name, title in STEP_TITLES.items():
        if f"{name}_over_task" in summary:
            rate, over, peak = (summary[f"{name}_{key}"] for key in ("samples_per_cpu_s", "over_task", "peak_gib"))
            lines.append(f"| {title} | {rate} | {over} | {peak} |")
    return "\n".join(lines)
