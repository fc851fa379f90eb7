"""What the experiment on distillation showed, as Markdown tables, from its result files alone."""

from __future__ import annotations

from collections.abc import Sequence

from vega_diffusion.benchmarks.report import Result
from vega_diffusion.specs.evaluation import OVERALL_KINDS
from vega_diffusion.specs.experiment import ExperimentSpec

MATRIX, SEEDS, STEPS = "distillation-matrix", "distillation-seeds", "distillation-step"
SO_FAR = f"{MATRIX}-so-far"


def experiment_tables(spec: ExperimentSpec, results: Sequence[Result]) -> str:
    """Return the tables of the newest results of both phases; empty where there are none."""
    parts = []
    matrix, seeds = newest(results, MATRIX, SO_FAR), newest(results, SEEDS)
    if matrix is not None:
        parts.append(_matrix_table(spec, matrix))
    if seeds is not None:
        parts += [_seeds_table(spec, seeds), _kinds_table(spec, seeds), _styles_table(spec, seeds)]
    return "\n\n".join(part for part in parts if part)


def _matrix_table(spec: ExperimentSpec, result: Result) -> str:
    summary, losses = result.measurement.summary, samples(result, "_loss")
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
    summary, scores = result.measurement.summary, samples(result, "_overall")
    head = f"`python -m vega_diffusion.benchmarks {SEEDS}`: {summary['steps']} steps of 128 samples, seeds "
    lines = [head + ", ".join(map(str, result.measurement.seeds)) + ".", ""]
    lines += [
        f"| configuration | scenes-dev, %, each seed | mean | less `{spec.baseline}` (95 %) |",
        "|---|---|---|---|",
    ]
    for name in _ranked(result):
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


def _kinds_table(spec: ExperimentSpec, result: Result) -> str:
    """Return the scores by kind, students above their teachers: are strengths of several teachers combined?"""
    summary = result.measurement.summary
    rows = [*(f"`{name}`" for name in _ranked(result)), *_teachers(spec)]
    lines = [
        "By kind, %, means over seeds:",
        "",
        "| |" + "".join(f" {kind.replace('_', ' ')} |" for kind in OVERALL_KINDS),
    ]
    lines.append("|---" * (1 + len(OVERALL_KINDS)) + "|")
    for row in rows:
        values = [summary.get(f"{row.strip('`')}_{kind}") for kind in OVERALL_KINDS]
        if all(isinstance(value, int | float) for value in values):
            lines.append(f"| {row} |" + "".join(f" {100 * float(value or 0):.1f} |" for value in values))
    return "\n".join(lines)


def _styles_table(spec: ExperimentSpec, result: Result) -> str:
    """Return whose style pictures have where the prompt names none."""
    summary = result.measurement.summary
    styles = list(dict.fromkeys(key.partition("_style_")[2] for key in summary if "_style_" in key))
    ofs = [*_ranked(result), *_teachers(spec)]

    def share(row: str, style: str) -> float:
        return float(summary.get(f"{row}_style_{style}", 0))

    shown = [style for style in styles if max(share(row, style) for row in ofs if row != spec.baseline) >= 0.1]
    lines = ["Styles that the checker sees where the prompt names none, % of pictures, first seed:", ""]
    lines += ["| |" + "".join(f" {style} |" for style in shown), "|---" * (1 + len(shown)) + "|"]
    for row in ofs:
        if any(key.startswith(f"{row}_style_") for key in summary):
            name = row if row in _teachers(spec) else f"`{row}`"
            lines.append(f"| {name} |" + "".join(f" {100 * share(row, style):.0f} |" for style in shown))
    return "\n".join(lines) if shown else ""


def _ranked(result: Result) -> list[str]:
    scores = samples(result, "_overall")
    return sorted(scores, key=lambda one: -sum(scores[one]))


def _teachers(spec: ExperimentSpec) -> list[str]:
    return [teacher.removeprefix("run:") for teacher in spec.teachers]


def _difference(summary: dict[str, float | int | str], name: str, other: str) -> str:
    value = summary.get(f"{name}_less_{other}")
    if not isinstance(value, int | float):
        return ""
    low, high = (100 * float(part) for part in str(summary[f"{name}_less_{other}_interval"]).split(" to "))
    return f"{100 * value:+.1f} ({low:+.1f} to {high:+.1f})"


def samples(result: Result, suffix: str) -> dict[str, list[float]]:
    """Return the values of each configuration, a seed each, by name."""
    found = result.measurement.samples
    return {name.removesuffix(suffix): values for name, values in found.items() if name.endswith(suffix)}


def newest(results: Sequence[Result], *cases: str) -> Result | None:
    """Return the newest result of some cases; None where there is none."""
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
    result = newest(results, STEPS)
    if result is None:
        return ""
    summary, machine = result.measurement.summary, result.hardware
    where = machine.accelerator or f"{machine.processor} with {machine.instructions}"
    numbers = "float32" if summary.get("mixed_precision") == "no" else "bf16"
    lines = [
        f"Whole steps of {summary['batch']} samples with the optimizer, vega-mini taught by mini-sdxl, {numbers}, one "
        f"thread of {where} (`{result.command}`):",
        "",
        "| step | samples/s | times the step without a teacher | peak memory, GiB |",
        "|---|---|---|---|",
    ]
    for name, title in STEP_TITLES.items():
        if f"{name}_over_task" in summary:
            rate, over, peak = (summary[f"{name}_{key}"] for key in ("samples_per_cpu_s", "over_task", "peak_gib"))
            lines.append(f"| {title} | {rate} | {over} | {peak} |")
    return "\n".join(lines)
