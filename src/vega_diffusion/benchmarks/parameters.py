"""Case `parameters`: how large the models of a comparison are, and how much work one step of each is; no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vega_diffusion.benchmarks.report import Bar, Measurement, Result
from vega_diffusion.errors import InvalidValue, Unavailable

CASE = "parameters"
COMPARED = ("sd-1.5", "vega", "ssd-1b", "sdxl")
VEGA_UNET, VEGA_SMALLER = 745_225_604, 0.70
PARTS = ("unet", "text encoders", "vae")
_COLOURS = {"unet": "#2f6fdb", "text encoders": "#8a94a6", "vae": "#c9b458"}
_INK, _SOFT = "#1d2330", "#6a7383"


def measure(models: tuple[str, ...] = COMPARED) -> Measurement:
    """Count parameters by part, and multiply-accumulates of one U-Net evaluation.

    Args:
        models: Presets, from left to right in the figure.
    """
    from vega_diffusion.models.measure import measure_model
    from vega_diffusion.specs.presets import preset

    sizes = {name: measure_model(preset(name)) for name in models}
    if len(sizes) < 2:
        raise InvalidValue("models", models, "two or more that differ", "name another")
    summary: dict[str, float | int | str] = {}
    for name, size in sizes.items():
        text = size.text_encoder_parameters + (size.text_encoder_2_parameters or 0)
        for part, count in zip(PARTS, (size.unet_parameters, text, size.vae_parameters), strict=True):
            summary[f"{name} {part}"] = count
        summary |= {f"{name} GMACs at 512 px": round(size.gmacs_512, 1)}
        summary |= {f"{name} GMACs at 1024 px": round(size.gmacs_1024, 1)}
    bars = []
    if {"vega", "sdxl"} <= sizes.keys():
        vega, sdxl = sizes["vega"].unet_parameters, sizes["sdxl"].unet_parameters
        smaller = 1 - vega / sdxl
        bars = [
            Bar(what="parameters of Vega's U-Net", measured=vega, unit="", limit=VEGA_UNET, better="lower"),
            Bar(
                what="Vega's U-Net smaller than SDXL's by", measured=smaller, unit="of 1", limit=0.70, better="higher"
            ),
        ]
    return Measurement(
        samples={},
        summary=summary,
        bars=tuple(bars),
        protocol="built on the meta device; a MAC is half a FLOP; one row of latents, 77 tokens, norms not counted",
    )


def draw(result: Result, path: Path) -> None:
    """Draw parameters by part, and work at 1024 px, as bars.

    Raises:
        Unavailable: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unavailable("figure: matplotlib is not installed; pip install 'vega-diffusion[plots]'") from error
    said = result.measurement.summary
    names = [key.removesuffix(" unet") for key in said if key.endswith(" unet")]
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    sizes, work = figure.subplots(1, 2)
    left = [0.0] * len(names)
    for part in PARTS:
        counts = [float(said[f"{name} {part}"]) / 1e9 for name in names]
        sizes.barh(names, counts, left=left, color=_COLOURS[part], label=part, height=0.62)
        left = [before + count for before, count in zip(left, counts, strict=True)]
    for place, total in enumerate(left):
        sizes.annotate(f"{total:.2f}", (total, place), (4, 0), textcoords="offset points", va="center", color=_INK)
    sizes.set_title("parameters, 1e9", loc="left", fontsize=10, color=_INK)
    sizes.legend(frameon=False, fontsize=8, loc="lower right")
    macs = [float(said[f"{name} GMACs at 1024 px"]) / 1e3 for name in names]
    work.barh(names, macs, color=_COLOURS["unet"], height=0.62)
    for place, count in enumerate(macs):
        work.annotate(f"{count:.2f}", (count, place), (4, 0), textcoords="offset points", va="center", color=_INK)
    work.set_title("one U-Net evaluation at 1024 px, 1e12 MACs", loc="left", fontsize=10, color=_INK)
    for axes, most in ((sizes, max(left)), (work, max(macs))):
        finish(axes, most)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def finish(axes: object, most: float) -> None:
    """Leave room for the numbers beside bars, and take away what is no data."""
    axes.set_xlim(0, 1.16 * most)  # type: ignore[attr-defined]
    axes.spines[["top", "right", "left"]].set_visible(False)  # type: ignore[attr-defined]
    axes.tick_params(axis="y", length=0)  # type: ignore[attr-defined]
    axes.tick_params(axis="x", colors=_SOFT, labelsize=8)  # type: ignore[attr-defined]


def names_of(result: Result) -> Sequence[str]:
    """Return the models of a result, in their order."""
    return [key.removesuffix(" unet") for key in result.measurement.summary if key.endswith(" unet")]
