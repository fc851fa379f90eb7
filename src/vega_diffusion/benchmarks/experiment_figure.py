"""The figure of the experiment on distillation: losses of the matrix, and scores in which every seed is a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from vega_diffusion.benchmarks.experiment_report import MATRIX, SEEDS, SO_FAR, newest, samples
from vega_diffusion.benchmarks.figures import save_figure
from vega_diffusion.benchmarks.report import Result
from vega_diffusion.errors import Unavailable
from vega_diffusion.specs.experiment import ExperimentSpec

_INK, _POINT, _LIGHT = "#1d2330", "#2f6fdb", "#c9d1dc"
_TEACHERS = ("#d1603d", "#8a5fbf", "#3a8f6f", "#b08a1e")


def draw_experiment(spec: ExperimentSpec, results: Sequence[Result], path: Path) -> None:
    """Write the figure.

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
    panels = [part for part in (newest(results, MATRIX, SO_FAR), newest(results, SEEDS)) if part is not None]
    figure = Figure(figsize=(7.2 * len(panels), 4.8), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, spec, result)
    save_figure(figure, path)


def _draw(axes: Any, spec: ExperimentSpec, result: Result) -> None:
    of_matrix = result.case != SEEDS
    scale, suffix = (1.0, "_loss") if of_matrix else (100.0, "_overall")
    values = {name: [scale * value for value in found] for name, found in samples(result, suffix).items()}
    names = sorted(values, key=lambda name: mean(values[name]), reverse=of_matrix)
    low, high = _limits([mean(found) for found in values.values()], [one for found in values.values() for one in found])
    for place, name in enumerate(names):
        found = values[name]
        if low <= mean(found) <= high:
            if len(found) > 1:
                axes.plot([mean(found)] * 2, [place - 0.3, place + 0.3], color=_LIGHT, linewidth=3)
            axes.plot(found, [place] * len(found), "o", color=_POINT, alpha=0.75, markersize=7)
        else:
            _note(axes, place, found, mean(found) > high, "{:.4f}" if of_matrix else "{:.1f}")
    for (called, value), colour in zip(_teachers(spec, result, suffix), _TEACHERS, strict=False):
        if low <= scale * value <= high:
            axes.axvline(scale * value, color=colour, linestyle=":", linewidth=1.5, label=called)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="lower left" if of_matrix else "lower right", title="teachers")
    axes.set_xlim(low, high)
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks(range(len(names)), [spec.named(name).title for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_LIGHT, linewidth=0.5)
    steps = f"{int(result.measurement.summary['steps']) * 128:,} samples"
    axes.set_xlabel("held-out denoising loss" if of_matrix else "scenes-dev, % of pictures", color=_INK)
    every = "one seed" if of_matrix else f"{len(result.measurement.seeds)} seeds, each a point"
    axes.set_title(f"{steps}, {every}", loc="left", fontsize=10, color=_INK)


def _limits(means: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return an axis that leaves out rows far from the others, which would press these together; with a margin."""
    if len(means) > 3:
        first, _, third = quantiles(means, n=4)
        fence = 3 * (third - first)
        values = [one for one in values if first - fence <= one <= third + fence] or values
    margin = 0.06 * (max(values) - min(values)) or 0.06 * abs(values[0]) or 1.0
    return min(values) - margin, max(values) + margin


def _note(axes: Any, place: int, values: Sequence[float], beyond: bool, form: str) -> None:
    """Write the values of a row that is beside the axis, at the edge where it is."""
    text = ", ".join(form.format(one) for one in values)
    axes.annotate(
        f"{text} \u2192" if beyond else f"\u2190 {text}",
        (1.0 if beyond else 0.0, place),
        xycoords=("axes fraction", "data"),
        ha="right" if beyond else "left",
        va="center",
        fontsize=9,
        color=_POINT,
    )


def _teachers(spec: ExperimentSpec, result: Result, suffix: str) -> Iterator[tuple[str, float]]:
    for teacher in spec.teachers:
        called = teacher.removeprefix("run:")
        value = result.measurement.summary.get(called + suffix)
        if isinstance(value, int | float):
            yield called, float(value)
