"""Case `parameters`: how large the models of a comparison are, and how much work one step of each is; no weights."""

from __future__ import annotations

from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import InvalidValue

COMPARED = ("sd-1.5", "vega", "ssd-1b", "sdxl")
VEGA_UNET, VEGA_SMALLER = 745_225_604, 0.70
PARTS = ("unet", "text encoders", "vae")


def measure(models: tuple[str, ...] = COMPARED) -> Measurement:
    """Count parameters by part, and multiply-accumulates of one U-Net evaluation.

    Args:
        models: Presets, from the lowest bar of the figure to the highest.
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
        off, smaller, goal = abs(vega - VEGA_UNET), 1 - vega / sdxl, VEGA_SMALLER
        bars = [
            Bar(what="Vega's U-Net, off the published parameters by", measured=off, unit="", limit=0, better="lower"),
            Bar(what="Vega's U-Net less than SDXL's by", measured=smaller, unit="of 1", limit=goal, better="higher"),
        ]
    return Measurement(
        samples={},
        summary=summary,
        bars=tuple(bars),
        protocol="built on the meta device; a MAC is half a FLOP; one row of latents, 77 tokens, norms not counted",
    )
