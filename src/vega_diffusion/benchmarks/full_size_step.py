"""Case `full-size-step`: a step of distilling SDXL into Vega with random weights, its peak memory against the plan."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.protocol import run_command
from vega_diffusion.benchmarks.report import Bar, Measurement

if TYPE_CHECKING:
    from vega_diffusion.specs.recipe import TrainRecipe

RECIPE = Path("recipes/vega-distill-sdxl.toml")
TOLERANCE = 0.15
SEED = 0


def small_step(path: Path, resolution: int) -> TrainRecipe:
    """Return a recipe as one that a CPU with 24 GB can take one step of.

    Its first teacher in bf16, one sample, no averages: nothing else differs.
    """
    from vega_diffusion.specs.data import ImageLatentsSpec
    from vega_diffusion.specs.recipe import TrainRecipe

    given = TrainRecipe.read(path)
    first = given.objective.teachers[0]  # type: ignore[union-attr]
    teacher = f'[{{ name = "{first.name}", base = "{first.base}", map = "{first.map}", dtype = "bf16" }}]'
    pictures = (f"data.resolution_px={resolution}",) if isinstance(given.data, ImageLatentsSpec) else ()
    return TrainRecipe.read(
        path,
        (
            "batch_size=1",
            "micro_batch_size=1",
            "mixed_precision=bf16",
            "activation_checkpointing=false",
            "ema=none",
            f"objective.teachers={teacher}",
            *pictures,
        ),
    )


def measure(recipe: Path = RECIPE, resolution: int = 256) -> Measurement:
    """Take one step in a process of its own and compare its peak memory with the plan.

    Args:
        recipe: The full-size recipe.
        resolution: Side of the picture in px.
    """
    import torch

    from vega_diffusion.training.planner import plan_run

    plan = plan_run(small_step(recipe, resolution), torch.device("cpu"))
    done = run_command(["vega_diffusion.benchmarks.full_size_step", str(recipe), str(resolution)])
    said = json.loads(done.stdout.strip().splitlines()[-1])
    peak = (done.peak_bytes - said["before_bytes"]) / 2**30
    return Measurement(
        samples={"peak_gib": [peak], "step_s": [said["step_s"]]},
        summary={
            "weights": "random",
            "peak_gib": round(peak, 2),
            "planned_gib": round(plan.total_gib, 2),
            "program_gib": round(said["before_bytes"] / 2**30, 2),
            "step_s": round(said["step_s"], 1),
            "student_parameters": plan.trained_parameters,
            "teacher_parameters": plan.frozen_parameters,
            "resolution_px": resolution,
            "loss": said["loss"],
        },
        bars=(
            Bar(
                what=f"SDXL into Vega at {resolution} px, random weights: peak memory of a step, off its plan by",
                measured=round(abs(peak / plan.total_gib - 1), 4),
                unit="of 1",
                limit=TOLERANCE,
                better="lower",
            ),
        ),
        seeds=(SEED,),
        protocol="one step with a teacher in bf16, features of 26 modules, AdamW, bf16 autocast, one sample; random "
        "weights: memory and time only; peak resident memory less that of the program before it builds a network",
    )


def main(path: str, resolution: str) -> None:
    """Take one step and tell how long it took and what the program itself needs."""
    import resource
    from dataclasses import replace

    import torch

    from vega_diffusion.diffusion.randomness import PositionRng
    from vega_diffusion.objectives.build import build_objective
    from vega_diffusion.training.attention import attention_kernel
    from vega_diffusion.training.components import find_spec, seeded_component
    from vega_diffusion.training.example_batch import example_batch
    from vega_diffusion.training.optimizer import build_optimizer
    from vega_diffusion.training.student import Student
    from vega_diffusion.training.teachers import build_teachers

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    recipe = small_step(Path(path), int(resolution))
    spec = find_spec(recipe.model.base)
    objective_spec: Any = recipe.objective
    with torch.device("meta"):
        unet = seeded_component(spec, "unet", SEED)
        (teacher,) = build_teachers(objective_spec, spec, None)
        taught = teacher.load()
    fill_randomly(unet, torch.float32)
    fill_randomly(taught, torch.bfloat16)
    student = Student({"unet": unet}).train()
    student.set_trainable(0)
    teacher = replace(teacher, load=lambda: taught)
    objective = build_objective(objective_spec, spec, {}, [teacher], recipe.batch_size)
    optimizer = build_optimizer(recipe.optimizer, student)
    batch = example_batch(recipe, spec)
    for name, tensor in batch.tensors.items():
        if tensor.is_floating_point() and name != "time_ids":
            tensor.normal_()
    started = time.monotonic()
    with attention_kernel(torch.device("cpu"), "bf16"), torch.autocast("cpu", torch.bfloat16):
        loss = objective(student, batch, PositionRng(SEED, [0])).total
    loss.backward()
    optimizer.step()
    said = {"before_bytes": before, "step_s": time.monotonic() - started, "loss": float(loss.detach())}
    print(json.dumps(said))


def fill_randomly(module: Any, dtype: Any) -> None:
    """Give a network on the meta device memory and small random weights."""
    import torch

    module.to(dtype)
    module.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.02, 0.02)
        for buffer in module.buffers():
            buffer.zero_()


if __name__ == "__main__":
    main(*sys.argv[1:])
