"""The few figures that README shows: each from the newest result file of its case, with the machine that gave it.

What lives here: which figures, and their table. What does not: the table of every goal (`tables`), measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log10

from vega_diffusion.benchmarks.report import Result
from vega_diffusion.benchmarks.tables import machine_title, number

BEGIN, END = "<!-- headlines:begin (make docs) -->", "<!-- headlines:end -->"


@dataclass(frozen=True)
class Headline:
    """A figure worth a line at the front.

    Args:
        what: What a reader is told.
        case: Whose newest result it comes from.
        key: Of the summary there.
        unit: Behind the number.
        scale: What the summary's value is multiplied by.
        of: Another key of that summary, whose value is divided by.
        where: What that summary, or the result's `threads`, must say for the result to be meant.
    """

    what: str
    case: str
    key: str
    unit: str
    scale: float = 1.0
    of: str | None = None
    where: Mapping[str, object] = field(default_factory=dict)

    def is_in(self, result: Result) -> bool:
        """Return whether a result has this figure."""
        summary = result.measurement.summary
        named = all(isinstance(summary.get(key), int | float) for key in (self.key, self.of) if key is not None)
        is_meant = self.where.items() <= {"threads": result.threads, **summary}.items()
        return result.case == self.case and named and is_meant


_MINI = {"model": "vega-mini", "threads": 1}
_BALANCED = "generate-balanced"
_INT8, _PRESETS = "speed-vega-openvino-int8-512", "speed-vega-torch-own-{}-tiny"
_GRAPHS = "speed-vega-torch-graphs-bf16-1024"
HEADLINES = (
    Headline("Vega's U-Net, parameters in those of SDXL's", "parameters", "vega unet", "%", 100, of="sdxl unet"),
    Headline(
        "Vega against SDXL, a picture of 512 px with the tiny decoder, torch float32 (random weights)",
        _PRESETS.format(512),
        "vega:torch:own against sdxl:torch:own",
        "times as fast",
        where={"vega:torch:own in use": "torch fp32"},
    ),
    Headline(
        "the same at 1024 px on a GPU, torch float16 (random weights)",
        _PRESETS.format(1024),
        "vega:torch:own against sdxl:torch:own",
        "times as fast",
        where={"vega:torch:own in use": "torch fp16 on cuda"},
    ),
    Headline(
        "Vega's U-Net at 1024 px, compiled whole, CUDA graphs, against the strongest peer measured, diffusers compiled "
        "by regions, bf16 (random weights)",
        _GRAPHS,
        "vega:torch-graphs:bf16 against vega:torch-compiled:bf16",
        "times as fast",
    ),
    Headline(
        "the same against diffusers' default there, bf16",
        _GRAPHS,
        "vega:torch-graphs:bf16 against vega:torch:bf16",
        "times as fast",
    ),
    Headline(
        "Vega's U-Net at 512 px, every layer in int8, against the strongest peer measured, OpenVINO's own conversion "
        "in float32 (random weights)",
        _INT8,
        "vega:openvino:int8 against vega:openvino-plain:fp32",
        "times as fast",
    ),
    Headline(
        "the same against diffusers' default, torch float32",
        _INT8,
        "vega:openvino:int8 against vega:torch:fp32",
        "times as fast",
    ),
    Headline("vega-mini, a picture of 25 guided steps, `balanced`", _BALANCED, "warm_median_s", "s", where=_MINI),
    Headline("the same by diffusers in the same run", _BALANCED, "diffusers_warm_median_s", "s", where=_MINI),
    Headline(
        "`vega generate --profile balanced`, from the command to the file",
        _BALANCED,
        "cold_median_s",
        "s",
        where=_MINI,
    ),
    *(
        Headline(what, f"certify-{file}-full", key, unit, scale, where=_MINI | {"following_split": "test"})
        for said, file in (
            ("`balanced`", "balanced-openvino-fp32"),
            ("`turbo`", "turbo-openvino-fp32"),
            ("`turbo` in int8", "turbo-openvino-int8"),
        )
        for what, key, unit, scale in (
            (f"{said} against `exact`", "speedup", "times as fast", 1),
            ("change of prompts followed with it, scenes-test", "following_change", "points", 100),
        )
    ),
    Headline(
        "eight different requests packed, against one after the other",
        "packing-torch-fp32",
        "ratio",
        "times",
        where=_MINI,
    ),
    Headline(
        "LoRA training against a plain loop of diffusers' components",
        "adapting-speed",
        "lora_run_ratio",
        "times as fast",
    ),
)


def headlines_table(results: Sequence[Result], headlines: Sequence[Headline] = HEADLINES) -> str:
    """Return the headlines as a Markdown table; a figure that no result file has yet has no line."""
    lines = []
    for one in headlines:
        found = [result for result in results if one.is_in(result)]
        if found:
            newest = max(found, key=lambda result: result.finished)
            lines.append(f"| {one.what} | {_value(one, newest)} {one.unit} | {machine_title(newest.hardware)} |")
    return "\n".join(["| what | measured | on |", "|---|---|---|", *lines, ""]) if lines else ""


def _value(one: Headline, result: Result) -> str:
    """Return a headline's figure with two significant digits: more is for the table of all goals."""
    summary = result.measurement.summary
    value = float(summary[one.key]) * one.scale / (float(summary[one.of]) if one.of else 1)
    return number(round(value, 1 - floor(log10(abs(value))))) if value else "0"
