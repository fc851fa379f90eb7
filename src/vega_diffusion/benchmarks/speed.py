"""Case `speed`: seconds of one U-Net evaluation at full size, model against model and backend against backend.

Weights are random unless a folder is named: they show speed and memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.protocol import summarise, time_interleaved
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import InvalidValue

if TYPE_CHECKING:
    from vega_diffusion.inference.backends.protocol import Denoiser, Question
    from vega_diffusion.specs.architecture import ModelSpec

# (first, other, size in px) -> how many times faster the first is to be.
GOALS = {
    ("vega:torch:own", "sdxl:torch:own", 512): 2.0,
    ("vega:torch:own", "sdxl:torch:own", 1024): 2.2,
    ("vega:torch:own", "sd-1-5:torch:own", 512): 1.5,
    ("vega:openvino:bf16", "vega:torch:fp32", 512): 3.5,
    ("vega:openvino:bf16", "vega:torch:bf16", 512): 1.3,
    ("vega:openvino:int8", "vega:torch:fp32", 512): 5.5,
    ("vega:openvino:int8", "vega:torch:bf16", 512): 2.0,
    ("vega:openvino:int8", "vega:openvino:bf16", 512): 1.45,
}
CALIBRATION = 2  # random weights have no quality that more samples could save


@dataclass(frozen=True)
class Contestant:
    """A model in a backend, as "vega:torch:fp32"; `own` is the dtype that the engine would choose here.

    torch is diffusers' own U-Net, called as its pipelines call it.
    """

    model: str
    backend: str
    precision: str

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """Read "MODEL", "MODEL:BACKEND" or "MODEL:BACKEND:PRECISION".

        Raises:
            InvalidValue: It has more parts.
        """
        given = text.split(":")
        if len(given) > 3 or not all(given):
            raise InvalidValue("contestants", text, "MODEL:BACKEND:PRECISION, as vega:openvino:int8", "write it so")
        return cls(*given, *("torch", "own")[len(given) - 1 :])

    def __str__(self) -> str:
        return f"{self.model}:{self.backend}:{self.precision}"


def measure(
    contestants: tuple[str, ...] = ("vega", "sdxl"),
    size_px: int = 512,
    rows: int = 1,
    repeats: int = 5,
    threads: int = 1,
) -> Measurement:
    """Time evaluations of several U-Nets in turn; ratios are of the first to each other one, pair by pair.

    Args:
        contestants: Each MODEL, MODEL:BACKEND or MODEL:BACKEND:PRECISION; a model is a preset (random weights) or a
            folder. All are in memory together.
        size_px: Side of the picture, px.
        rows: Of one evaluation; guidance takes two a picture.
        repeats: Timed rounds, 5 or more.
        threads: Of torch and OpenVINO.
    """
    import torch

    torch.set_num_threads(threads)
    asked = [Contestant.parse(text) for text in contestants]
    if len(asked) < 2 or len(set(asked)) < len(asked):
        raise InvalidValue("contestants", contestants, "two or more that differ", "name another")
    opened = {str(one): _open(one, size_px, rows, threads) for one in asked}
    calls: dict[str, Callable[[int], object]] = {
        name: partial(_evaluate, denoiser, question) for name, (denoiser, question) in opened.items()
    }
    timings = time_interleaved(calls, repeats=repeats)
    first, *others = opened
    ratios = {
        other: [b.cpu_s / a.cpu_s for a, b in zip(timings[first], timings[other], strict=True)] for other in others
    }
    bars = [
        Bar(
            what=f"{first} against {other}, {size_px} px", measured=median(found), unit="x", limit=goal, better="higher"
        )
        for other, found in ratios.items()
        if (goal := GOALS.get((first, other, size_px))) is not None
    ]
    return Measurement(
        name=f"{first.replace(':', '-')}-{size_px}",
        samples={f"{name} wall_s": [one.wall_s for one in found] for name, found in timings.items()}
        | {f"{name} cpu_s": [one.cpu_s for one in found] for name, found in timings.items()},
        summary={
            **{f"{name} {key}": value for name, found in timings.items() for key, value in summarise(found).items()},
            **{f"{first} against {other}": round(median(found), 3) for other, found in ratios.items()},
            **{f"{name} in use": _told(denoiser) for name, (denoiser, _) in opened.items()},
            "size_px": size_px,
            "rows": rows,
        },
        bars=tuple(bars),
        seeds=(0,),
        protocol=f"random weights for presets; one warm-up, {repeats} rounds, contestants in turn; ratios are medians "
        "of pairs of processor seconds, so that other work on the machine counts less; torch is diffusers' own U-Net",
    )


def _open(one: Contestant, size_px: int, rows: int, threads: int) -> tuple[Denoiser, Question]:
    """Return a contestant, ready, and what it is asked."""
    import torch

    from vega_diffusion.inference.backends.faults import Route
    from vega_diffusion.inference.backends.open import Opening, Weights, open_denoiser
    from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
    from vega_diffusion.inference.backends.torch_eager import PRECISIONS
    from vega_diffusion.inference.components import choose_dtype

    spec, digest, build = _model(one.model)
    with torch.device("meta"):
        count = sum(p.numel() for p in _built(spec).parameters())
    own = PRECISIONS[choose_dtype("auto", torch.device("cpu"), count)]
    precision: Any = own if one.precision == "own" else one.precision
    dtype = {text: dtype for dtype, text in PRECISIONS.items()}.get(precision, torch.float32)
    network = build(torch.float32 if one.backend == "openvino" else dtype)
    question = random_question(spec, size_px // spec.autoencoder.downscale, rows)
    rule = QuantisationRule(num_samples=CALIBRATION, num_probes=0)
    samples = [question.rows(0, 1) for _ in range(CALIBRATION)]
    opening = Opening(say=_say, num_threads=threads, may_fall_back=False, rule=rule, keep_blobs=False)
    route = Route(one.backend, precision)  # type: ignore[arg-type]
    denoiser = open_denoiser(route, Weights(digest, lambda: network), opening, questions=lambda: samples)
    return denoiser, question if one.backend == "openvino" else question.mapped(partial(_narrowed, dtype))


def _narrowed(dtype: Any, tensor: Any) -> Any:
    return tensor.to(dtype) if tensor.ndim > 1 else tensor


def _model(name: str) -> tuple[ModelSpec, str, Callable[[Any], Any]]:
    """Return a model's spec, what names its weights, and what builds its U-Net in a dtype."""
    from vega_diffusion.models.checkpoint import load_unet
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.models.digest import model_digest
    from vega_diffusion.specs.presets import PRESETS, preset

    folder = Path(name).expanduser()
    if name in PRESETS or not folder.is_dir():
        spec = preset(name)
        return spec, f"random-{name}-seed-0", partial(_random, spec)
    import torch

    spec = load_spec(folder)
    return (
        spec,
        model_digest(folder, torch.float32),
        lambda dtype: load_unet(folder, spec.unet, dtype).eval().requires_grad_(False),
    )


def _built(spec: ModelSpec) -> Any:
    from vega_diffusion.models.unet import build_unet

    return build_unet(spec.unet)


def _random(spec: ModelSpec, dtype: Any) -> Any:
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        return _built(spec).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)


def random_question(spec: ModelSpec, side: int, rows: int) -> Question:
    """Return a question of random numbers for a U-Net, float32."""
    import torch

    from vega_diffusion.inference.plan import example_question

    generator = torch.Generator().manual_seed(0)

    def filled(tensor: Any) -> Any:
        if tensor.ndim == 1:
            return torch.full_like(tensor, 500.0)
        return torch.randn(tensor.shape, generator=generator)

    return example_question(spec.unet, rows, side, side).mapped(filled)


def _evaluate(denoiser: Denoiser, question: Question, index: int) -> None:
    denoiser.predict(question)


def _told(denoiser: Denoiser) -> str:
    in_use = denoiser.in_use
    return f"{in_use.backend} {in_use.precision}{' compiled' if in_use.is_compiled else ''}"


def _say(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)
