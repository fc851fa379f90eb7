"""Case `packing`: eight mixed requests together against one at a time, on the same backend; pictures compared."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from vega_diffusion.benchmarks.protocol import summarise, time_interleaved
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.specs.profile import ProfileName

if TYPE_CHECKING:
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.specs.request import GenerateRequest

FASTER = 1.7
LEVELS = {"torch fp32": 1}  # of 255; everywhere else not one bit may differ


def measure(
    model: str = "vega-mini", profile: ProfileName = "exact", max_rows: int = 16, repeats: int = 5, threads: int = 1
) -> Measurement:
    """Time eight requests of different steps, guidance, samplers and seeds, in turn packed and one at a time.

    Args:
        model: A name, a diffusers folder or a Hub id.
        profile: Whose backend draws; its other settings hold, too.
        max_rows: Most rows of one evaluation.
        repeats: Timed rounds.
        threads: Of torch.
    """
    import torch

    from vega_diffusion.inference.engine import Engine

    torch.set_num_threads(threads)
    engine = Engine.load(model)
    requests = mixed_requests(profile)
    timings = time_interleaved(
        {
            "one_at_a_time": lambda index: [engine.generate(request) for request in requests],
            "packed": lambda index: list(engine.stream_many(requests, max_rows)),
            "fixed_rows": lambda index: list(engine.stream_many(requests, max_rows, fixed_rows=True)),
        },
        repeats=repeats,
    )
    pairs = zip(timings["one_at_a_time"], timings["packed"], strict=True)
    ratio = median(alone.wall_s / packed.wall_s for alone, packed in pairs)
    in_use = engine.route_of(requests[0])
    ran = f"{in_use.backend} {in_use.precision}"
    apart = difference(engine, requests, max_rows)
    return Measurement(
        name=f"{in_use.backend}-{in_use.precision}",
        samples={f"{name}_wall_s": [one.wall_s for one in found] for name, found in timings.items()}
        | {f"{name}_cpu_s": [one.cpu_s for one in found] for name, found in timings.items()},
        summary={
            **{f"{name}_{key}": value for name, found in timings.items() for key, value in summarise(found).items()},
            "ratio": round(ratio, 3),
            "images": len(requests),
            "model": model,
            "backend": in_use.backend,
            "precision": in_use.precision,
            "levels_apart": apart,
        },
        bars=(
            Bar(what=f"packed against one at a time ({ran})", measured=ratio, unit="x", limit=FASTER, better="higher"),
            Bar(
                what=f"pictures, packed against alone ({ran})",
                measured=apart,
                unit="levels of 255",
                limit=LEVELS.get(ran, 0),
                better="lower",
            ),
        ),
        seeds=tuple(range(len(requests))),
        protocol=f"one warm-up; {repeats} rounds, the ways in turn; images a second are {len(requests)} by the seconds",
    )


def mixed_requests(profile: ProfileName) -> list[GenerateRequest]:
    """Return eight requests that differ in everything that may differ within one evaluation."""
    from vega_diffusion.specs.request import GenerateRequest

    prompts = (
        "a cat next to a slice of pizza",
        "two red apples on a blue background",
        "a dog in the snow",
        "a fox on the beach",
        "a guitar above a green tree",
        "three mushrooms",
        "a rocket, line art style",
        "a yellow car left of a house",
    )
    steps, scales, samplers = (20, 25, 30), (3.0, 5.0, 7.5, 1.0), ("dpmpp_2m", "euler", "euler_a")
    return [
        GenerateRequest.from_dict(
            {
                "prompt": prompt,
                "seed": number,
                "num_steps": steps[number % 3],
                "guidance_scale": scales[number % 4],
                "sampler": samplers[number % 3],
                "profile": profile,
            }
        )
        for number, prompt in enumerate(prompts)
    ]


def difference(engine: Engine, requests: list[GenerateRequest], max_rows: int) -> int:
    """Return the largest difference, in levels of 255, between pictures drawn packed and alone."""
    import numpy

    together = dict(engine.stream_many(requests, max_rows))
    apart = 0
    for number, request in enumerate(requests):
        images = (together[number].image, engine.generate(request)[0].image)
        one, other = (numpy.asarray(image, dtype=numpy.int16) for image in images)
        apart = max(apart, int(numpy.abs(one - other).max()))
    return apart
