"""Case `generate`: seconds a picture with a loaded engine, seconds and peak memory of the whole cold command."""

from __future__ import annotations

import tempfile

from vega_diffusion.benchmarks.protocol import Timing, run_command, summarise, time_interleaved
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.specs.profile import ProfileName

PROMPT = "a cat next to a slice of pizza"
# Most seconds of a warm picture and of the cold command; profiles on OpenVINO start without torch.
GOALS = {"exact": (1.0, 8.0)}
GOALS_OF_PROFILES = (0.25, 3.0)


def measure(
    model: str = "vega-mini", num_steps: int = 25, repeats: int = 7, threads: int = 1, profile: ProfileName = "exact"
) -> Measurement:
    """Time pictures in the model's own size with the model's own guidance at every step, beside diffusers' pipeline.

    Args:
        model: A name, a diffusers folder or a Hub id.
        num_steps: Sampler steps; with guidance, each calls the U-Net on two rows.
        repeats: Timed rounds of a warm picture; the cold command runs five times.
        threads: Threads for the warm pictures; 1 is what the command chooses at the mini family's size.
        profile: How to draw; the cold command keeps the profile's own guidance.
    """
    import torch

    torch.set_num_threads(threads)
    timings, size, in_use = time_warm(model, num_steps, repeats, profile)
    warm = timings["engine"]
    cold, peaks = time_cold(model, num_steps, profile)
    warm_summary, cold_summary = summarise(warm), summarise(cold)
    peak_gb = max(peaks) / 1e9
    warm_goal, cold_goal = GOALS.get(profile, GOALS_OF_PROFILES)
    return Measurement(
        name="" if profile == "exact" else profile,
        samples={
            "warm_wall_s": [timing.wall_s for timing in warm],
            "warm_cpu_s": [timing.cpu_s for timing in warm],
            "diffusers_warm_wall_s": [timing.wall_s for timing in timings["diffusers"]],
            "cold_wall_s": [timing.wall_s for timing in cold],
            "cold_cpu_s": [timing.cpu_s for timing in cold],
            "cold_peak_bytes": peaks,
        },
        summary={
            **{f"warm_{name}": value for name, value in warm_summary.items()},
            **{f"diffusers_warm_{name}": value for name, value in summarise(timings["diffusers"]).items()},
            **{f"cold_{name}": value for name, value in cold_summary.items()},
            "peak_gb": round(peak_gb, 3),
            "model": model,
            "size": size,
            "num_steps": num_steps,
            "profile": profile,
            "in_use": in_use,
        },
        bars=(
            Bar(
                what=f"a picture, engine loaded ({profile}, {size}, {num_steps} steps with guidance)",
                measured=warm_summary["median_s"],
                unit="s",
                limit=warm_goal,
                better="lower",
            ),
            Bar(
                what=f"`vega generate --profile {profile}` from start to end, cold",
                measured=cold_summary["median_s"],
                unit="s",
                limit=cold_goal,
                better="lower",
            ),
            Bar(what="its peak memory", measured=peak_gb, unit="GB", limit=1.5, better="lower"),
        ),
        seeds=tuple(range(repeats)),
        protocol=f"one warm-up; {repeats} warm pictures, seeds 0, 1, ..., engine and diffusers pipeline in turn; "
        "five fresh interpreters, seed 0; goals are held by medians and by the largest peak; 1 GB = 10^9 bytes",
    )


def time_warm(
    model: str, num_steps: int, repeats: int, profile: ProfileName
) -> tuple[dict[str, list[Timing]], str, str]:
    """Time pictures of one loaded engine and of diffusers' own pipeline on the same weights, in turn.

    Returns:
        Timings of `engine` and of `diffusers`, the size of a picture, and what really drew, both as text.
    """
    import torch
    from diffusers import StableDiffusionXLPipeline

    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.specs.request import GenerateRequest

    engine = Engine.load(model)
    parts = engine.components
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        parts.folder, torch_dtype=parts.dtype, use_safetensors=True, variant="fp16"
    ).to(parts.device)
    pipeline.set_progress_bar_config(disable=True)
    defaults = parts.spec.generation

    def draw(index: int) -> tuple[int, int]:
        request = GenerateRequest(
            prompt=PROMPT, num_steps=num_steps, seed=max(index, 0), profile=profile, guidance_interval=(0.0, 1.0)
        )
        (drawn,) = engine.generate(request)
        used.add(f"{drawn.record.backend} {drawn.record.precision}")
        return drawn.image.size

    def draw_with_diffusers(index: int) -> None:
        pipeline(
            prompt=PROMPT,
            negative_prompt=defaults.negative_prompt,
            guidance_scale=defaults.guidance_scale,
            num_inference_steps=num_steps,
            generator=torch.Generator("cpu").manual_seed(max(index, 0)),
        )

    used: set[str] = set()
    width, height = draw(-1)
    timings = time_interleaved({"engine": draw, "diffusers": draw_with_diffusers}, repeats=repeats)
    return timings, f"{width} x {height} px", ", ".join(sorted(used))


def time_cold(model: str, num_steps: int, profile: ProfileName, repeats: int = 5) -> tuple[list[Timing], list[float]]:
    """Return timings and peak bytes of whole `vega generate` commands."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["vega_diffusion.cli.main", "generate", PROMPT, "--model", model, "--seed", "0"]
        command += ["--num-steps", str(num_steps), "--profile", profile, "--output", folder]
        runs = [run_command(command) for _ in range(repeats + 1)][1:]
    return [run.timing for run in runs], [float(run.peak_bytes) for run in runs]
