"""Case `full-size-adapting`: a LoRA step and a full step of Vega with random weights, peak memory against the plan.

What the full step is chosen for: 24 GB of memory and no GPU. Weights and gradients stay fp32, which any processor
multiplies fast (bf16 is emulated where it lacks the instructions), and the moments are in 8 bits, as the card's own
command asks for with `--use_8bit_adam`. One sample at 512 px keeps so little for the way back that activation
checkpointing, which that command asks for too, would spare a tenth of the memory for a quarter more time.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.full_size_step import SEED, TOLERANCE, fill_randomly
from vega_diffusion.benchmarks.protocol import run_command
from vega_diffusion.benchmarks.report import Bar, Measurement

if TYPE_CHECKING:
    from vega_diffusion.specs.recipe import TrainRecipe

BASE = "vega"
JOBS = {"lora": "a LoRA step", "full": "a full step"}


def adapting_recipe(
    job: str, base: str = BASE, resolution: int = 512, rank: int = 16, optimizer: str = "adamw_8bit"
) -> TrainRecipe:
    """Return a recipe of one step with one sample: fp32, no averages, no activation checkpointing.

    Args:
        job: `lora` or `full`.
        base: A preset's name; its weights are random here.
        resolution: Side of the picture in px.
        rank: Of the adapters, which AdamW moves.
        optimizer: Of the full step.
    """
    from vega_diffusion.specs.recipe import TrainRecipe

    model: dict[str, Any] = {"base": base, "train": ["unet"]}
    if job == "lora":
        model["lora"] = {"rank": rank}
    return TrainRecipe.from_dict(
        {
            "model": model,
            "data": {"kind": "image_latents", "folder": "pictures", "resolution_px": resolution, "bucket_step_px": 32},
            "objective": {"kind": "denoising"},
            "optimizer": {"kind": "adamw" if job == "lora" else optimizer, "lr": 1e-5},
            "ema": None,
            "seed": SEED,
            "steps": 1,
            "batch_size": 1,
            "micro_batch_size": 1,
        }
    )


def measure(resolution: int = 512, rank: int = 16, optimizer: str = "adamw_8bit", base: str = BASE) -> Measurement:
    """Take one step of each kind in a process of its own and compare its peak memory with the plan.

    Args:
        resolution: Side of the picture in px.
        rank: Of the adapters.
        optimizer: Of the full step.
        base: A preset's name.
    """
    import torch

    from vega_diffusion.training.planner import plan_run

    summary: dict[str, float | int | str] = {"weights": "random", "resolution_px": resolution, "rank": rank}
    samples: dict[str, list[float]] = {}
    bars = []
    for job, said_as in JOBS.items():
        recipe = adapting_recipe(job, base, resolution, rank, optimizer)
        plan = plan_run(recipe, torch.device("cpu"))
        module = "vega_diffusion.benchmarks.full_size_adapting"
        done = run_command([module, job, recipe.to_json()])
        said = json.loads(done.stdout.strip().splitlines()[-1])
        peak = (done.peak_bytes - said["before_bytes"]) / 2**30
        samples |= {f"{job}_peak_gib": [peak], f"{job}_step_s": [said["step_s"]]}
        summary |= {
            f"{job}_peak_gib": round(peak, 2),
            f"{job}_planned_gib": round(plan.total_gib, 2),
            f"{job}_planned": f"weights {plan.weights_gib:.2f}, gradients and moments {plan.optimizer_gib:.2f}, "
            f"activations {plan.activations_gib:.2f}",
            f"{job}_program_gib": round(said["before_bytes"] / 2**30, 2),
            f"{job}_step_s": round(said["step_s"], 1),
            f"{job}_trained_parameters": plan.trained_parameters,
            f"{job}_frozen_parameters": plan.frozen_parameters,
            f"{job}_optimizer": recipe.optimizer.kind,
            f"{job}_loss": said["loss"],
        }
        bars.append(
            Bar(
                what=f"{base} at {resolution} px, random weights: peak memory of {said_as}, off its plan by",
                measured=round(abs(peak / plan.total_gib - 1), 4),
                unit="of 1",
                limit=TOLERANCE,
                better="lower",
            )
        )
    return Measurement(
        samples=samples,
        summary=summary,
        bars=tuple(bars),
        seeds=(SEED,),
        protocol=f"one step with one sample, fp32, cached captions, gradients clipped, no averages, no activation "
        f"checkpointing; LoRA: rank {rank} on all attention maps, AdamW; full: {optimizer}; random weights: memory and "
        "time only; peak resident memory less that of the program before it builds a network",
    )


def main(job: str, recipe_json: str) -> None:
    """Take one step and tell how long it took and what the program itself needs."""
    import resource

    import torch

    from vega_diffusion.diffusion.randomness import PositionRng
    from vega_diffusion.models.lora import add_lora
    from vega_diffusion.objectives.build import build_objective
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.training.attention import attention_kernel
    from vega_diffusion.training.components import find_spec, seeded_component
    from vega_diffusion.training.example_batch import example_batch
    from vega_diffusion.training.optimizer import build_optimizer, unavailable_because
    from vega_diffusion.training.student import Student

    recipe = TrainRecipe.from_json(recipe_json)
    spec = find_spec(recipe.model.base)
    assert unavailable_because(recipe.optimizer.kind) is None  # also loads what the optimizer needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with torch.device("meta"):
        unet = seeded_component(spec, "unet", SEED)
        if recipe.model.lora is not None:
            add_lora(unet, recipe.model.lora, SEED)
    fill_randomly(unet, torch.float32)
    student = Student({"unet": unet}, by_adapters=recipe.model.lora is not None).train()
    objective = build_objective(recipe.objective, spec, {}, [], recipe.batch_size)
    optimizer = build_optimizer(recipe.optimizer, student)
    learns = [parameter for parameter in student.parameters() if parameter.requires_grad]
    batch = example_batch(recipe, spec)
    for name, tensor in batch.tensors.items():
        if tensor.is_floating_point() and name != "time_ids":
            tensor.normal_()
    started = time.monotonic()
    with attention_kernel(torch.device("cpu"), recipe.mixed_precision):
        loss = objective(student, batch, PositionRng(SEED, [0])).total
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learns, 1.0)
    optimizer.step()
    said = {
        "before_bytes": before,
        "step_s": time.monotonic() - started,
        "loss": float(loss.detach()),
        "job": job,
        "parameters": sum(parameter.numel() for parameter in learns),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
