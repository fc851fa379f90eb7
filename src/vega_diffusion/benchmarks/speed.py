"""Case `speed`: seconds of U-Nets and pictures at full size: models, backends and profiles against one another.

A picture's seconds are those of the evaluations that its steps take and of one decoding, each timed alone: prompts
count as encoded. Weights are random unless a folder is named: they show speed and memory and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from vega_diffusion.benchmarks.contestants import (
    Contestant,
    DecoderChoice,
    Evaluation,
    Ready,
    model_of,
    open_contestant,
)
from vega_diffusion.benchmarks.protocol import Timing, summarise, time_interleaved
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import InvalidValue

# (first, other, size in px, decoder) -> how many times faster the first is to be.
GOALS: dict[tuple[str, str, int, DecoderChoice], float] = {
    ("vega:torch:own", "sdxl:torch:own", 512, "tiny"): 2.0,
    ("vega:torch:own", "sdxl:torch:own", 1024, "tiny"): 2.2,
    ("vega:torch:own", "sd-1.5:torch:own", 512, "tiny"): 1.5,
    ("vega:openvino:bf16", "vega:torch:fp32", 512, "none"): 3.5,
    ("vega:openvino:bf16", "vega:torch:bf16", 512, "none"): 1.3,
    ("vega:openvino:bf16", "vega:openvino-plain:bf16", 512, "none"): 0.97,
    **{
        ("vega:openvino:int8", other, size_px, "none"): goal
        for size_px in (512, 1024)
        for other, goal in (
            ("vega:torch:fp32", 5.5),
            ("vega:torch:bf16", 2.0),
            ("vega:openvino-plain:bf16", 1.45),
            ("vega:stable-diffusion.cpp:fp16", 10.0),
            ("vega:stable-diffusion.cpp:int8", 10.0),
        )
    },
    ("vega-mini:torch:own", "mini-sdxl:torch:own", 128, "none"): 2.0,
    ("vega@balanced+tiny", "sdxl@balanced+tiny", 512, "tiny"): 2.0,
    ("vega@balanced+tiny", "sdxl@balanced+tiny", 1024, "tiny"): 2.2,
    ("vega@balanced+tiny", "sd-1.5@balanced+tiny", 512, "tiny"): 1.5,
    ("vega@realtime", "vega:torch:fp32", 512, "full"): 8.0,
    ("vega@balanced", "vega:torch:bf16", 512, "full"): 2.1,
    ("vega@turbo", "vega:torch:bf16", 512, "full"): 4.0,
    ("vega@turbo+tiny", "vega:torch:bf16", 512, "full"): 5.0,
    ("vega:torch-graphs:bf16", "vega:torch:bf16", 1024, "none"): 1.8,
    ("vega:torch-graphs:bf16", "vega:torch-compiled:bf16", 1024, "none"): 1.3,
    ("vega:torch-graphs:int8", "vega:torch-graphs:bf16", 1024, "none"): 1.3,
}
# Goals are of a picture's questions, which guidance gives a second row.
_ROWS_OF_A_PICTURE = 2
# What is compared; on devices that compute beside the processor, the wall clock.
_CLOCKS = {"cpu": "cpu_s"}
# Of the decoding alone.
DECODING_GOALS: dict[tuple[str, str, int, DecoderChoice], float] = {
    ("vega:openvino:bf16", "vega:torch:fp32", 512, "full"): 2.4,
}


def measure(
    contestants: tuple[str, ...] = ("vega", "sdxl"),
    size_px: int = 512,
    rows: int = 1,
    repeats: int = 5,
    threads: int = 1,
    decoder: DecoderChoice = "none",
    num_steps: int = 25,
    device: str = "auto",
    layers_of: str | None = None,
) -> Measurement:
    """Time several models in turn; ratios are of the first to each other one, round by round.

    Args:
        contestants: Each MODEL, MODEL:BACKEND, MODEL:BACKEND:PRECISION or MODEL@PROFILE, and +tiny or +full after it
            for a decoder of its own; a model is a preset (random weights) or a folder. All are in memory together.
        size_px: Side of the picture, px.
        rows: Of one evaluation; guidance takes two a picture, and with two a profile guides where it says so.
        repeats: Timed rounds, 5 or more.
        threads: Of torch and OpenVINO.
        decoder: Time an autoencoder, too, of contestants that have no choice of their own. Where any is timed, and for
            profiles, ratios are of whole pictures.
        num_steps: Of a picture, where its profile does not say.
        device: Where torch runs: `auto`, `cpu` or `cuda`. On a GPU seconds on the wall are compared, elsewhere those of
            the processor.
        layers_of: U-Nets in int8 leave those layers in wide numbers that this model's does; it was calibrated here
            (`vega calibrate`) and has their topology. None: every layer is in int8.
    """
    import torch

    from vega_diffusion.benchmarks.random_int8 import layers_left_out
    from vega_diffusion.inference.components import choose_device

    torch.set_num_threads(threads)
    where = choose_device(device).type
    clock = _CLOCKS.get(where, "wall_s")
    asked = [Contestant.parse(text) for text in contestants]
    if len(asked) < 2 or len(set(asked)) < len(asked):
        raise InvalidValue("contestants", contestants, "two or more that differ", "name another")
    whole = decoder != "none" or any(one.profile or one.decoder for one in asked)
    steps = num_steps if whole else 1
    left_out = () if layers_of is None else layers_left_out(layers_of)
    by = "" if layers_of is None else Path(layers_of).name
    ready = {str(one): open_contestant(one, size_px, rows, threads, decoder, where, steps, left_out) for one in asked}
    warm_ups = 1 if where == "cpu" else 3  # a CUDA graph is recorded in the second call, replayed from the third on
    timings = time_interleaved(_calls(ready), warm_up=warm_ups, repeats=repeats)
    seconds = {name: _picture_seconds(name, one, timings, clock) for name, one in ready.items()}
    first, *others = ready
    ratios = {other: [b / a for a, b in zip(seconds[first], seconds[other], strict=True)] for other in others}
    decodings: dict[str, list[float]] = {}
    if ready[first].decode is not None:
        last = {name: [getattr(one, clock) for one in timings[_decoding(name)]] for name in ready if ready[name].decode}
        decodings = {
            other: [b / a for a, b in zip(last[first], found, strict=True)]
            for other, found in last.items()
            if other != first
        }
    return Measurement(
        name=f"{_file_name(first)}-{size_px}"
        + ("" if decoder == "none" else f"-{decoder}")
        + (f"-{rows}-rows" if rows > _ROWS_OF_A_PICTURE else "")
        + (f"-layers-of-{by}" if by else ""),
        samples={f"{name} wall_s": [one.wall_s for one in found] for name, found in timings.items()}
        | {f"{name} cpu_s": [one.cpu_s for one in found] for name, found in timings.items()},
        summary={
            **{f"{name} {key}": value for name, found in timings.items() for key, value in summarise(found).items()},
            **{
                f"{name} picture {clock}": round(median(found), 3 if clock == "cpu_s" else 6)
                for name, found in seconds.items()
            },
            **{f"{first} against {other}": round(median(found), 3) for other, found in ratios.items()},
            **{f"{first} against {other}, decoding": round(median(found), 3) for other, found in decodings.items()},
            **{f"{name} in use": one.in_use() for name, one in ready.items()},
            **{
                f"{name} asks for": "; ".join(f"{count} x {asked}" for asked, count in one.counts.items())
                for name, one in ready.items()
            },
            **{f"{name} TFLOP/s": round(found, 2) for name, found in _rates(asked, timings, size_px, rows)},
            "size_px": size_px,
            "rows": rows,
            "decoder": decoder,
            "num_steps": steps,
            **({"layers left out of int8": f"{len(left_out)}, as of {by}"} if by else {}),
        },
        bars=tuple(_bars(ratios, decodings, (first, size_px, decoder), by)) if rows <= _ROWS_OF_A_PICTURE else (),
        seeds=(0,),
        protocol=f"random weights for presets; warm-ups: {warm_ups}; {repeats} rounds, contestants in turn; "
        "ratios are medians "
        + (
            "of pairs of processor seconds, so that other work on the machine counts less"
            if clock == "cpu_s"
            else "of pairs of seconds on the wall, each call waited for"
        )
        + "; torch is diffusers' own U-Net; TFLOP/s: twice an evaluation's multiplications over its median wall time",
    )


def _file_name(contestant: str) -> str:
    return re.sub(r"[:@+]", "-", contestant)


def _rates(
    asked: Sequence[Contestant], timings: dict[str, list[Timing]], size_px: int, rows: int
) -> Iterator[tuple[str, float]]:
    """Yield the work of the evaluations of contestants without a profile by their time, TFLOP/s."""
    from vega_diffusion.models.measure import unet_macs

    for one in asked:
        if one.profile is None:
            spec = model_of(one.model)
            macs = unet_macs(spec.unet, size_px, size_px, spec.autoencoder.downscale)
            seconds = median(timing.wall_s for timing in timings[_evaluation(str(one), None)])
            yield str(one), 2 * macs * rows / seconds / 1e12


def _bars(
    pictures: dict[str, list[float]],
    decodings: dict[str, list[float]],
    asked: tuple[str, int, DecoderChoice],
    by: str,
) -> Iterator[Bar]:
    """Yield the goals that the first contestant has against others, of pictures and of decodings.

    Args:
        pictures: Ratios by name of the other.
        decodings: The same of the decoding alone.
        asked: Name of the first, size in px, decoder.
        by: Who chose the layers in int8; empty where nobody did.
    """
    first, size_px, decoder = asked
    chosen = f", layers in int8 as of {by}" if by else ""
    for ratios, goals, alone in ((pictures, GOALS, ""), (decodings, DECODING_GOALS, " alone")):
        what = ("" if decoder == "none" else f", {decoder} decoder{alone}") + chosen
        for other, found in ratios.items():
            goal = goals.get((first, other, size_px, decoder))
            if goal is not None:
                said = f"{first} against {other}, {size_px} px{what}"
                yield Bar(what=said, measured=median(found), unit="x", limit=goal, better="higher")


def _calls(ready: dict[str, Ready]) -> dict[str, Callable[[int], object]]:
    """Return what is timed in every round: evaluations and decodings."""
    calls: dict[str, Callable[[int], object]] = {}
    for name, one in ready.items():
        for asked, evaluate in one.evaluate.items():
            calls[_evaluation(name, asked)] = lambda _, run=evaluate: run()
        if one.decode is not None:
            calls[_decoding(name)] = lambda _, run=one.decode: run()
    return calls


def _picture_seconds(name: str, one: Ready, timings: dict[str, list[Timing]], clock: str) -> list[float]:
    """Return the seconds of each round by a clock: of a picture's evaluations, and of its decoding where asked for."""
    parts = [(_evaluation(name, asked), count) for asked, count in one.counts.items()]
    if one.decode is not None:
        parts.append((_decoding(name), 1))
    rounds = zip(*(timings[part] for part, _ in parts), strict=True)
    counts = [count for _, count in parts]
    return [sum(n * getattr(each, clock) for n, each in zip(counts, found, strict=True)) for found in rounds]


def _evaluation(name: str, asked: Evaluation | None) -> str:
    """Return what an evaluation's timings are called; a contestant without a profile has one kind alone."""
    return name if asked is None or "@" not in name else f"{name} {asked}"


def _decoding(name: str) -> str:
    return f"{name} decoding"
