"""Case `distillation-step`: what a teacher costs in a training step, in time and memory, and what caches save."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from vega_diffusion.benchmarks.protocol import MIN_REPEATS, run_command, time_interleaved
from vega_diffusion.benchmarks.report import Measurement

if TYPE_CHECKING:
    from torch import Tensor

    from vega_diffusion.objectives.teachers import Recalled, Teacher
    from vega_diffusion.specs.architecture import ModelSpec

Precision = Literal["no", "bf16"]

RECIPE = Path("recipes/vega-mini-distill-cpu.toml")
SEED = 0

_NO_TEACHER = ('objective={ kind = "denoising", min_snr_gamma = 5.0 }',)  # the same carved student
# Name -> changes to the recipe; whether what the teacher says is kept; whether latents and captions are.
CASES: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "task": (_NO_TEACHER, False, True),
    "output_recalled": (("objective.feature_level=none", "objective.feature_weight=0.0"), True, True),
    "output": (("objective.feature_level=none", "objective.feature_weight=0.0"), False, True),
    "features": ((), False, True),
    "features_recalled": ((), True, True),
    "task_without_caches": (
        _NO_TEACHER,
        False,
        False,
    ),
    "features_without_caches": ((), False, False),
}


def measure(
    recipe: Path = RECIPE, batch: int = 64, repeats: int = MIN_REPEATS, mixed_precision: Precision | None = None
) -> Measurement:
    """Time whole steps in turn on one thread, then run each kind of step alone for its peak memory.

    Args:
        recipe: The distillation; its objective and models are used.
        batch: Samples of a step.
        repeats: Timed rounds.
        mixed_precision: As in recipes; None: what is faster here, bf16 where the processor has instructions for it.
    """
    import torch

    from vega_diffusion.inference.components import has_bfloat16_kernels

    torch.set_num_threads(1)
    precision = mixed_precision or ("bf16" if has_bfloat16_kernels() else "no")
    steps = {name: make_step(name, recipe, batch, precision) for name in CASES}
    timings = time_interleaved({name: lambda _, step=step: step() for name, step in steps.items()}, repeats=repeats)
    rates = {name: batch / median(one.cpu_s for one in found) for name, found in timings.items()}
    del steps
    peaks = {name: _peak(name, recipe, batch, precision) for name in CASES}
    over = {
        name: median(a.cpu_s / b.cpu_s for a, b in zip(timings[name], timings["task"], strict=True)) for name in CASES
    }
    return Measurement(
        samples={f"{name}_cpu_s": [one.cpu_s for one in found] for name, found in timings.items()},
        summary={
            **{f"{name}_samples_per_cpu_s": round(rate, 1) for name, rate in rates.items()},
            **{f"{name}_over_task": round(ratio, 2) for name, ratio in over.items()},
            **{f"{name}_peak_gib": round(peak / 2**30, 2) for name, peak in peaks.items()},
            "batch": batch,
            "mixed_precision": precision,
        },
        seeds=(SEED,),
        protocol=f"whole steps of {batch} samples with optimizer, one thread, processor seconds, cases in turn; ratios "
        "are medians of the rounds' own; peak: resident memory of a process that does two such steps; without caches "
        "the autoencoder and both text encoders run in the step",
    )


def make_step(name: str, path: Path, batch: int, precision: Precision) -> Callable[[], None]:
    """Return one whole training step of a case."""
    from contextlib import nullcontext
    from dataclasses import replace

    import torch

    from vega_diffusion.data.batches import Batch
    from vega_diffusion.diffusion.randomness import PositionRng
    from vega_diffusion.objectives.build import build_objective
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.training.attention import attention_kernel
    from vega_diffusion.training.encoders import load_vae
    from vega_diffusion.training.optimizer import build_optimizer
    from vega_diffusion.training.run import build_parts

    changes, recalled, cached = CASES[name]
    recipe = TrainRecipe.read(path, (*changes, f"mixed_precision={precision}"))
    parts = build_parts(recipe)
    spec = parts.spec
    torch.manual_seed(SEED)
    side, channels = spec.unet.sample_size, spec.autoencoder.latent_channels
    latents = torch.randn(batch, channels, side, side)
    if recalled:
        parts = replace(parts, teachers=[_recalling(one, spec, latents) for one in parts.teachers])
    objective = build_objective(recipe.objective, spec, {} if cached else parts.frozen, parts.teachers, batch)
    student = parts.student.train()
    optimizer = build_optimizer(recipe.optimizer, student)
    tensors: dict[str, Tensor] = {"latents": latents, "time_ids": torch.zeros(batch, 6)}
    vae: Any = None
    if cached:
        assert spec.text_encoder_2 is not None
        tensors["prompt_embeds"] = torch.randn(batch, 77, spec.unet.cross_attention_dim)
        tensors["pooled_prompt_embeds"] = torch.randn(batch, spec.text_encoder_2.projection_dim)
    else:
        ids = torch.randint(0, spec.text_encoder.vocab_size, (batch, 77))
        tensors |= {"input_ids": ids, "input_ids_2": ids}
        vae, _ = load_vae(recipe, spec)
        pixels = torch.rand(batch, 3, side * spec.autoencoder.downscale, side * spec.autoencoder.downscale) * 2 - 1
    given = Batch([""] * batch, tensors, [""] * batch)
    rng = PositionRng(SEED, range(batch))

    def step() -> None:
        narrow = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with attention_kernel(torch.device("cpu"), precision), narrow:
            if vae is not None:
                with torch.no_grad():
                    given.tensors["latents"] = vae.encode(pixels).latent_dist.sample().float()
            total = objective(student, given, rng).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _recalling(teacher: Teacher, spec: ModelSpec, latents: Tensor) -> Teacher:
    """Return a teacher that recalls noise of the right shapes, in memory and fp16 as the disk keeps it."""
    from dataclasses import replace

    import torch

    from vega_diffusion.objectives.teachers import Recalled
    from vega_diffusion.training.teacher_cache import PREDICTION, answer_shapes

    shapes = answer_shapes(teacher, spec, tuple(latents.shape[1:]))
    said = {name: torch.randn(len(latents), *shape).half() for name, shape in shapes.items()}

    def recall(positions: Sequence[int]) -> Recalled:
        found = {name: kept[: len(positions)].float() for name, kept in said.items()}
        return Recalled(found.pop(PREDICTION), found)

    return replace(teacher, recall=recall)


def _peak(name: str, recipe: Path, batch: int, precision: Precision) -> int:
    """Return the peak resident bytes of a process that does two steps of one case."""
    module = "vega_diffusion.benchmarks.distillation_step"
    return run_command([module, name, str(recipe), str(batch), precision], env={"OMP_NUM_THREADS": "1"}).peak_bytes


def main(name: str, recipe: str, batch: str, precision: Precision) -> None:
    """Do two steps of one case and say so."""
    import torch

    torch.set_num_threads(1)
    step = make_step(name, Path(recipe), int(batch), precision)
    step()
    step()
    print(json.dumps({"case": name, "steps": 2}))


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])  # type: ignore[arg-type]
