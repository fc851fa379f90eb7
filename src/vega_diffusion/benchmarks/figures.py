"""Figures like the model card's, drawn from result files alone: how large models are, and how long a picture takes."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from vega_diffusion.benchmarks.parameters import PARTS
from vega_diffusion.benchmarks.report import Result
from vega_diffusion.benchmarks.tables import machine_title
from vega_diffusion.errors import Unavailable

_COLOURS = {"unet": "#2f6fdb", "text encoders": "#8a94a6", "vae": "#c9b458"}
_COLUMNS = 2
_INK, _SOFT = "#1d2330", "#6a7383"
_PICTURE = {" picture cpu_s": "processor seconds", " picture wall_s": "seconds"}


def draw_sizes(result: Result, path: Path) -> None:
    """Draw parameters by part, and work at 1024 px, of the case `parameters`.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    said = result.measurement.summary
    names = [key.removesuffix(" unet") for key in said if key.endswith(" unet")]
    figure, (sizes, work) = _figure(2)
    left = [0.0] * len(names)
    for part in PARTS:
        counts = [float(said[f"{name} {part}"]) / 1e9 for name in names]
        sizes.barh(names, counts, left=left, color=_COLOURS[part], label=part, height=0.62)
        left = [before + count for before, count in zip(left, counts, strict=True)]
    sizes.legend(frameon=False, fontsize=8, loc="lower right")
    _finish(sizes, left, "parameters, 1e9")
    macs = [float(said[f"{name} GMACs at 1024 px"]) / 1e3 for name in names]
    work.barh(names, macs, color=_COLOURS["unet"], height=0.62)
    _finish(work, macs, "one U-Net evaluation at 1024 px, 1e12 MACs")
    save_figure(figure, path)


def draw_speed(results: Sequence[Result], path: Path) -> None:
    """Draw the seconds of a picture of each contestant of the case `speed`, a panel a result.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    figure, panels = _figure(len(results))
    for axes, result in zip(panels, results, strict=True):
        said = result.measurement.summary
        unit = next(one for one in _PICTURE if any(key.endswith(one) for key in said))
        seconds = {key.removesuffix(unit): float(value) for key, value in said.items() if key.endswith(unit)}
        names = [name.removesuffix(":torch:own") for name in seconds]
        axes.barh(names, list(seconds.values()), color=_COLOURS["unet"], height=0.62)
        steps, rows = int(said["num_steps"]), int(said["rows"])
        what = (
            f"{steps} evaluations of {rows} row{'s' * (rows > 1)}, {said['decoder']} decoder"
            if steps > 1
            else "one evaluation"
        )
        _finish(axes, list(seconds.values()), f"{said['size_px']} px, {machine_title(result.hardware)}")
        axes.set_xlabel(f"{_PICTURE[unit]}: {what}", fontsize=8, color=_SOFT)
    save_figure(figure, path)


def _figure(panels: int) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("figure: matplotlib is not installed; pip install 'vega-diffusion[plots]'") from error
    rows, columns = -(-panels // _COLUMNS), min(panels, _COLUMNS)
    figure = Figure(figsize=(5.6 * columns, 2.8 * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in every[panels:]:
        axes.set_axis_off()
    return figure, every[:panels]


def _finish(axes: Any, values: Sequence[float], title: str) -> None:
    """Write the numbers beside the bars, and take away what is no data."""
    for place, value in enumerate(values):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axes.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center", color=_INK)
    axes.set_xlim(0, 1.16 * max(values))
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=_SOFT, labelsize=8)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure; a PNG in 128 colours, a third of the bytes, since a repository keeps every version of it."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".png":
        figure.savefig(path, dpi=130)
        return
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
