"""Case `adapting-speed`: LoRA, full fine-tune and DreamBooth LoRA, ours against diffusers' scripts or a naive loop.

What lives here: the jobs, the folders they read, both sides' commands, the figures; and, as a program, our side of one
job. What does not: the naive loops (`adapting_loops`) and the clock (`watched`).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.protocol import MIN_REPEATS, Timing, time_interleaved
from vega_diffusion.benchmarks.report import Bar, Measurement, git
from vega_diffusion.benchmarks.watched import Watched, watch_command
from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable
from vega_diffusion.specs.base import Spec

if TYPE_CHECKING:
    from vega_diffusion.specs.recipe import TrainRecipe

SEED = 0
BEGUN = "libraries are there"
"""What our programs say when their imports are over; diffusers' scripts say something of their own then."""

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
SPANS = {"run": ("begun", None), "steps": ("first", "last")}
"""What is timed: a run after its imports to the end of its process, and its steps alone."""


@dataclass(frozen=True)
class Job:
    """One job.

    Args:
        name: In figures and of the naive loop.
        title: In the table of results.
        script: Of diffusers, below a checkout.
        limit: Samples a second, ours over theirs, at least.
        pictures_per_sample: How many pictures a sample of `batch` holds: a pair with prior preservation.
    """

    name: str
    title: str
    script: str
    limit: float
    pictures_per_sample: int = 1


JOBS = (
    Job("lora", "LoRA", "examples/text_to_image/train_text_to_image_lora_sdxl.py", 1.5),
    Job("full", "full fine-tune", "examples/text_to_image/train_text_to_image_sdxl.py", 1.2),
    Job("dreambooth", "DreamBooth LoRA with prior", "examples/dreambooth/train_dreambooth_lora_sdxl.py", 2.0, 2),
)


class Setting(Spec):
    """One side's job: the same numbers for both, folders of its own for each."""

    model: str
    pictures: str
    class_pictures: str
    output: str
    steps: int
    batch: int
    resolution_px: int
    rank: int = 4
    lr: float = 1e-4
    weight_decay: float = 1e-2
    prior_weight: float = 1.0
    caption: str = "a sks cat"
    class_caption: str = "a cat"
    seed: int = SEED


def measure(
    diffusers: Path | None = None,
    model: str = "mini-sdxl",
    job: tuple[str, ...] = (),
    steps: int = 100,
    batch: int = 8,
    pictures: int = 64,
    resolution: int = 128,
    repeats: int = MIN_REPEATS,
) -> Measurement:
    """Run both sides of every job in turn, each run a process of its own with nothing cached.

    Args:
        diffusers: A checkout of diffusers, whose scripts are run as they are; without it, naive loops of its parts.
        model: A known model, or a folder.
        job: Names of jobs; all unless given.
        steps: Of a run.
        batch: Samples of a step; with prior preservation as many pictures of the class beside them.
        pictures: In the folder, and in that of the class.
        resolution: Their side in px.
        repeats: Rounds.
    """
    from vega_diffusion.models.find import resolve_model

    unknown = [name for name in job if name not in {one.name for one in JOBS}]
    if unknown:
        raise InvalidValue("--job", unknown[0], f"some of: {', '.join(one.name for one in JOBS)}", "choose one of them")
    if diffusers is not None:
        check_checkout(diffusers)
    folder = str(resolve_model(model).resolve())
    samples: dict[str, list[float]] = {}
    summary: dict[str, float | int | str] = {"against": _named(diffusers), "batch": batch, "steps": steps}
    bars = []
    with tempfile.TemporaryDirectory(prefix="vega-adapting-") as name:
        home = Path(name)
        write_pictures(home, pictures)
        for one in JOBS:
            if job and one.name not in job:
                continue
            given = {"model": folder, "steps": steps, "batch": batch, "resolution_px": resolution}
            rounds = _rounds(one, home, given, diffusers, repeats)
            bars.append(_figures(one, steps * batch * one.pictures_per_sample, rounds, samples, summary))
    return Measurement(
        samples=samples,
        summary=summary,
        bars=tuple(bars),
        seeds=(SEED,),
        protocol=f"{pictures} pictures, {resolution} px, {steps} steps of {batch} samples (with prior preservation "
        "as many pictures of the class beside them, counted too), fp32, rank 4, AdamW, no previews, no trackers, one "
        "thread, fresh processes with nothing cached, in turn. A run, from the end of its imports to its own end: "
        "weights read, pictures and captions encoded, steps, result written; ours also writes a state to resume from. "
        "Steps: the loop alone. Process: with the imports. Bars: samples/s of a whole run, processor seconds, the "
        f"median of the rounds' own ratios. Against: {_said_of(diffusers)}",
    )


def _said_of(checkout: Path | None) -> str:
    if checkout is not None:
        return "the three scripts of a checkout, unmodified, with its own library, a tracker that is not installed"
    return (
        "plain loops of diffusers' components that do in a step what its scripts do: LoRA and DreamBooth encode "
        "pictures, LoRA captions too; the full one collates cached lists"
    )


def _named(checkout: Path | None) -> str:
    if checkout is None:
        return "naive loops of diffusers' components"
    return f"diffusers {git('-C', str(checkout), 'rev-parse', '--short', 'HEAD') or checkout.name}"


def check_checkout(checkout: Path) -> None:
    """Refuse a folder that is no checkout of diffusers, or a machine that lacks what its scripts import.

    Raises:
        MissingFile: A script is not there.
        Unavailable: A package is missing.
    """
    for job in JOBS:
        if not (checkout / job.script).is_file():
            raise MissingFile(f"--diffusers: {checkout / job.script}: no such file; give a checkout of diffusers")
    for package in ("torchvision", "datasets"):
        if find_spec(package) is None:
            raise Unavailable(f"--diffusers: its scripts need {package}, which is not installed; pip install {package}")


def write_pictures(home: Path, count: int) -> None:
    """Write scenes with captions, the same without, and others that stand for the class; all are plain folders."""
    from vega_diffusion.data.scenes.folder import METADATA, write_scene_folder
    from vega_diffusion.training.sources import load_atlas

    for name, seed in (("captioned", SEED), ("class", SEED + 1)):
        written = home / "scenes" / name
        write_scene_folder(written, lambda: load_atlas(None)[0], count=count, seed=seed)
        shutil.copytree(written, home / name, ignore=shutil.ignore_patterns(".*", METADATA))
    shutil.copytree(home / "captioned", home / "bare")
    # Two columns, as diffusers' full script joins two tables and stumbles over what both have.
    rows = [json.loads(line) for line in (home / "scenes/captioned" / METADATA).read_text().splitlines()]
    lines = [json.dumps({"file_name": row["file_name"], "text": row["text"]}) for row in rows]
    (home / "captioned" / METADATA).write_text("\n".join(lines) + "\n")


def _rounds(
    job: Job, home: Path, given: dict[str, Any], checkout: Path | None, repeats: int
) -> dict[str, list[Watched]]:
    """Return both sides' runs, one after the other."""
    found: dict[str, list[Watched]] = {"ours": [], "theirs": []}

    def run(side: str) -> Callable[[int], None]:
        def once(index: int) -> None:
            print(f"{job.name}, {side}: run {index + 1} of {repeats}", file=sys.stderr, flush=True)
            found[side].append(run_once(job, side, home, given, checkout))

        return once

    time_interleaved({side: run(side) for side in found}, warm_up=0, repeats=repeats)
    return found


def run_once(job: Job, side: str, home: Path, given: dict[str, Any], checkout: Path | None) -> Watched:
    """Run one side of a job in a fresh process and with fresh folders."""
    with tempfile.TemporaryDirectory(dir=home) as name:
        own = Path(name)
        # Copies: a script stumbles over any file that another side has left beside the pictures.
        shutil.copytree(home / ("captioned" if job.name != "dreambooth" else "bare"), own / "pictures")
        shutil.copytree(home / "class", own / "class")
        setting = Setting(
            **given, pictures=str(own / "pictures"), class_pictures=str(own / "class"), output=str(own / "output")
        )
        file = own / "setting.json"
        file.write_text(setting.to_json())
        env = ONE_THREAD | {"VEGA_HOME": str(own / "home"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        steps, python = setting.steps, [sys.executable]
        if side == "theirs" and checkout is not None:
            env |= {
                "PYTHONPATH": str(checkout.resolve() / "src"),
                "HF_HOME": str(own / "hub"),
                "ACCELERATE_USE_CPU": "true",
            }
            signs = {
                "begun": "Distributed environment",
                "first": r"Steps:\s+0%",
                "last": rf"Steps: 100%[^\r\n]*\b{steps}/{steps} \[",
            }
            command = [*python, str((checkout / job.script).resolve()), *flags(job, setting)]
            return watch_command(command, signs, env=env, folder=own)
        module = "vega_diffusion.benchmarks." + ("adapting_speed" if side == "ours" else "adapting_loops")
        signs = {"begun": BEGUN, "first": r"\?step/s", "last": rf"\b{steps}/{steps} \[[^\]]*step"}
        return watch_command([*python, "-m", module, job.name, str(file)], signs, env=env, folder=own)


def flags(job: Job, setting: Setting) -> list[str]:
    """Return the flags with which a script of diffusers does the job."""
    given = {
        "pretrained_model_name_or_path": setting.model,
        "output_dir": setting.output,
        "resolution": setting.resolution_px,
        "train_batch_size": setting.batch,
        "max_train_steps": setting.steps,
        "checkpointing_steps": setting.steps + 1,
        "learning_rate": setting.lr,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_weight_decay": setting.weight_decay,
        "mixed_precision": "no",
        "seed": setting.seed,
        # The scripts cannot do without a tracker; one that is not installed is left out without a word.
        "report_to": "dvclive",
    }
    if list(Path(setting.model, "unet").glob("*.fp16.*")):
        given["variant"] = "fp16"
    if job.name == "dreambooth":
        given |= {
            "instance_data_dir": setting.pictures,
            "instance_prompt": setting.caption,
            "class_data_dir": setting.class_pictures,
            "class_prompt": setting.class_caption,
            "num_class_images": len(list(Path(setting.class_pictures).iterdir())),
            "prior_loss_weight": setting.prior_weight,
        }
    else:
        given |= {"train_data_dir": setting.pictures, "image_column": "image", "caption_column": "text"}
    if job.name != "full":
        given["rank"] = setting.rank
    switches = ["--center_crop", *(["--with_prior_preservation"] if job.name == "dreambooth" else [])]
    return [f"--{name}={value}" for name, value in given.items()] + switches


def recipe_of(job: str, setting: Setting) -> TrainRecipe:
    """Return the recipe with which our loop does the job."""
    from vega_diffusion.specs.recipe import TrainRecipe

    data: dict[str, Any] = {
        "kind": "image_latents",
        "folder": setting.pictures,
        "resolution_px": setting.resolution_px,
        "bucket_step_px": 32,
        "max_aspect": 1.0,
        "interpolation": "bilinear",
        "empty_caption_rate": 0.0,
        "seed": setting.seed,
    }
    size = setting.batch
    if job == "dreambooth":
        size *= 2
        data["caption"] = setting.caption
        data["prior"] = {
            "caption": setting.class_caption,
            "folder": setting.class_pictures,
            "num_pictures": len(list(Path(setting.class_pictures).glob("*.png"))),
            "weight": setting.prior_weight,
        }
    model: dict[str, Any] = {"base": setting.model, "train": ["unet"]}
    return TrainRecipe.from_dict(
        {
            "model": model if job == "full" else model | {"lora": {"rank": setting.rank}},
            "data": data,
            "objective": {"kind": "denoising", "min_snr_gamma": None},
            "optimizer": {"kind": "adamw", "lr": setting.lr, "weight_decay": setting.weight_decay},
            "ema": None,
            "seed": setting.seed,
            "steps": setting.steps,
            "batch_size": size,
            "micro_batch_size": size,
            "save_every": setting.steps,
            "tracker": None,
        }
    )


def _figures(
    job: Job,
    pictures: int,
    rounds: dict[str, list[Watched]],
    samples: dict[str, list[float]],
    summary: dict[str, float | int | str],
) -> Bar:
    """Add a job's figures and return its bar."""
    spans: dict[str, dict[str, list[Timing]]] = {
        name: {side: [run.between(*ends) for run in runs] for side, runs in rounds.items()}
        for name, ends in SPANS.items()
    } | {"process": {side: [run.end for run in runs] for side, runs in rounds.items()}}
    for span, sides in spans.items():
        for side, timings in sides.items():
            name = f"{job.name}_{side}_{span}"
            samples[f"{name}_cpu_s"] = [round(one.cpu_s, 3) for one in timings]
            samples[f"{name}_wall_s"] = [round(one.wall_s, 3) for one in timings]
            rate = median(pictures / one.cpu_s for one in timings)
            summary[f"{name}_samples_per_cpu_s"] = round(rate, 2)
        summary[f"{job.name}_{span}_ratio"] = round(_ratio(sides, "cpu_s"), 3)
        summary[f"{job.name}_{span}_ratio_wall"] = round(_ratio(sides, "wall_s"), 3)
    return Bar(
        what=f"{job.title}: samples/s of a whole run, ours over {summary['against']}",
        measured=round(_ratio(spans["run"], "cpu_s"), 3),
        unit="times",
        limit=job.limit,
        better="higher",
    )


def _ratio(sides: dict[str, Sequence[Timing]] | dict[str, list[Timing]], seconds: str) -> float:
    """Return how many times as fast ours is, the median of the rounds' own ratios."""
    both = zip(sides["theirs"], sides["ours"], strict=True)
    return median(getattr(theirs, seconds) / getattr(ours, seconds) for theirs, ours in both)


def main(job: str, file: str) -> None:
    """Do our side of one job."""
    import torch

    from vega_diffusion.training.loop import print_to_stderr
    from vega_diffusion.training.run import run_recipe
    from vega_diffusion.training.run_directory import RunDirectory

    torch.set_num_threads(1)
    recipe = recipe_of(job, Setting.from_json(Path(file).read_text()))
    print(BEGUN, file=sys.stderr, flush=True)
    run_recipe(recipe, RunDirectory(job), warn=print_to_stderr, device="cpu")


if __name__ == "__main__":
    main(*sys.argv[1:])
