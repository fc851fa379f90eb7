"""From the flags of diffusers' scripts to a recipe, and to what surrounds it: where it runs, what is done with it.

A flag does one of three things: it changes the recipe or the job, it is answered with a line (`notes`), or it is
refused with one. What is not given stays as in the original script. Pictures, model and optimizer are in files of their
own (`diffusers_data.py`, ...); what a job leaves behind is the matter of `diffusers_result.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.find import is_hub_id
from vega_diffusion.specs.diffusers_flags import FULL, Script, ScriptFlags
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import find_spec
from vega_diffusion.training.diffusers_data import count_pictures, picture_section
from vega_diffusion.training.diffusers_machine import Machine, tracker_of
from vega_diffusion.training.diffusers_model import BaseModel, find_base, precision_of
from vega_diffusion.training.diffusers_optimizer import TEXT_ENCODERS, lr_schedule_section, optimizer_section

Say = Callable[[str], object]

MAX_VARIANTS = 8


@dataclass(frozen=True)
class Job:
    """One call of a script, understood.

    Args:
        script: Which one.
        recipe: The run.
        base: The model that it starts from.
        num_pictures: How many pictures it trains on.
        output_dir: Folder of the run and of its result.
        logging_dir: TensorBoard's folder in it.
        resume: `latest`, the folder of a state, or None for a run that must not be there yet.
        kohya: Whether the adapters are written in kohya's layout as well.
        hub_model_id: Repository of the upload, None without one.
        hub_token: None takes the one that is kept on this machine.
        cache_dir: Where data sets of the Hub are kept.
        tf32: Whether GPUs may round products of fp32 numbers.
        notes: What the user should know, one line each.
    """

    script: Script
    recipe: TrainRecipe
    base: BaseModel
    num_pictures: int
    output_dir: Path
    logging_dir: str
    resume: str | None
    kohya: bool
    hub_model_id: str | None
    hub_token: str | None = field(repr=False)
    cache_dir: str | None
    tf32: bool
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Return the run in a line."""
        recipe, data = self.recipe, self.recipe.data
        lora = recipe.model.lora
        what = f"LoRA of rank {lora.rank} ({', '.join(recipe.model.train)})" if lora else "full fine-tune"
        optimizer, schedule = recipe.optimizer, recipe.lr_schedule
        parts = recipe.batch_size // recipe.micro_batch_size
        return (
            f"{what} of {self.base.name}: {recipe.steps:,} steps of {recipe.batch_size} samples"
            f" ({parts} x {recipe.micro_batch_size}), {self.num_pictures:,} pictures at {data.resolution_px} px,"  # type: ignore[union-attr]
            f" {optimizer.kind} at {optimizer.lr:g} ({schedule.kind}),"
            f" {'fp32' if recipe.mixed_precision == 'no' else recipe.mixed_precision}, seed {recipe.seed}"
        )


def translate(flags: ScriptFlags, machine: Machine) -> Job:
    """Understand a command line.

    Raises:
        VegaError: A flag cannot be honoured, or model and pictures are not there; the message names the flag.
    """
    notes: list[str] = []
    say = notes.append
    _refuse(flags, say)
    _check_numbers(flags)
    precision = precision_of(flags, machine.launched_precision, machine.has_gpu, say)
    optimizer = optimizer_section(flags, machine.processes, machine.optimizers, say)
    tracker = tracker_of(flags, machine, say)
    seed = flags["seed"]
    if seed is None:
        say("--seed: not given; 0 is used, so that the run can be repeated")
        seed = 0
    data = picture_section(flags, seed, say)
    base = find_base(flags, precision, say)
    _check_size(flags, base)
    number = count_pictures(data)
    steps, per_epoch = _length(flags, number, machine.processes)
    batch = flags["train_batch_size"] * flags["gradient_accumulation_steps"] * machine.processes
    if data["crop"] == "random" or data["flip_rate"]:
        # No more views than a picture is seen: each is encoded once.
        data["variants"] = min(MAX_VARIANTS, math.ceil(steps * batch / number))
    pairs = 2 if "prior" in data else 1  # one picture of the class beside each of the subject's
    recipe = {
        "model": base.section | _adapted(flags),
        "data": data,
        "objective": _objective(flags, say),
        "optimizer": optimizer,
        "lr_schedule": lr_schedule_section(flags, steps, optimizer["lr"], say),
        "ema": {"decay": 0.9999, "warmup": 10} if flags["use_ema"] else None,
        "seed": seed,
        "steps": steps,
        "batch_size": batch * pairs,
        "micro_batch_size": flags["train_batch_size"] * pairs,
        "max_grad_norm": flags["max_grad_norm"],
        "mixed_precision": precision,
        "activation_checkpointing": flags["gradient_checkpointing"],
        "save_every": flags["checkpointing_steps"],
        "keep": flags["checkpoints_total_limit"] or steps // flags["checkpointing_steps"] + 1,
        "log_every": 1 if flags["debug_loss"] else 20,
        "tracker": tracker,
    }
    recipe |= _previews(flags, steps, per_epoch, seed, say)
    _answer(flags, machine, base, data, say)
    return Job(
        script=flags.script,
        recipe=TrainRecipe.from_dict(recipe),
        base=base,
        num_pictures=number,
        output_dir=Path(flags["output_dir"]).expanduser().absolute(),
        logging_dir=flags["logging_dir"],
        resume=flags["resume_from_checkpoint"],
        kohya=flags["output_kohya_format"],
        hub_model_id=_repository(flags, say),
        hub_token=flags["hub_token"],
        cache_dir=flags["cache_dir"],
        tf32=flags["allow_tf32"],
        notes=tuple(notes),
    )


def _refuse(flags: ScriptFlags, say: Say) -> None:
    """Say no to what there is not, before anything else is looked at."""
    if flags["do_edm_style_training"]:
        raise InvalidValue(
            "--do_edm_style_training",
            True,
            "nothing: models of SDXL's kind are not trained on EDM's noise levels",
            "leave it out; use a model whose scheduler is EulerDiscrete or DDPM",
        )
    if flags["enable_npu_flash_attention"]:
        say("--enable_npu_flash_attention: not supported; torch's own fused attention is used")
    if Path(flags["logging_dir"]).is_absolute() or ".." in Path(flags["logging_dir"]).parts:
        raise InvalidValue(
            "--logging_dir", flags["logging_dir"], "a folder inside --output_dir", "give a relative path"
        )


def _check_numbers(flags: ScriptFlags) -> None:
    """Name the flag where a number would be refused under the name that it has in a recipe, or would divide by zero."""
    positive = ["train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "checkpointing_steps"]
    positive += ["max_train_steps", "checkpoints_total_limit", "max_train_samples", "resolution", "repeats", "rank"]
    positive += ["learning_rate", "validation_epochs", "num_class_images", "text_encoder_lr"]
    for name in positive:
        if flags[name] is not None and not flags[name] > 0:
            raise InvalidValue(f"--{name}", flags[name], "more than 0", "raise it")
    if not 0 <= flags["proportion_empty_prompts"] <= 1:
        raise InvalidValue(
            "--proportion_empty_prompts", flags["proportion_empty_prompts"], "a share from 0 to 1", "change it"
        )


def _check_size(flags: ScriptFlags, base: BaseModel) -> None:
    spec = find_spec(base.section["base"])
    needed = spec.autoencoder.downscale * 2 ** (spec.unet.num_levels - 1)
    side = flags["resolution"]
    if side % needed:
        near = max(needed, side // needed * needed)
        raise InvalidValue("--resolution", side, f"a multiple of {needed} for this model", f"use {near}")


def _adapted(flags: ScriptFlags) -> dict[str, Any]:
    """Return what of the model learns, and how."""
    if flags.script == FULL:
        return {"train": ["unet"]}
    train = ["unet", *(TEXT_ENCODERS if flags["train_text_encoder"] else ())]
    # Their scale is alpha / rank, and in the scripts alpha is the rank: what a recipe takes where it names none.
    lora = {"rank": flags["rank"], "dropout": flags["lora_dropout"], "dora": flags["use_dora"]}
    return {"train": train, "lora": lora}


def _length(flags: ScriptFlags, pictures: int, processes: int) -> tuple[int, int]:
    """Return (steps of the run, steps of an epoch) as the scripts count them.

    An epoch of a subject is as long as the longer of the two sets: its own pictures with repeats, or the class's.
    """
    samples = pictures * flags["repeats"]
    if flags["with_prior_preservation"]:
        samples = max(samples, flags["num_class_images"])
    batches = math.ceil(math.ceil(samples / flags["train_batch_size"]) / processes)
    per_epoch = math.ceil(batches / flags["gradient_accumulation_steps"])
    return flags["max_train_steps"] or flags["num_train_epochs"] * per_epoch, per_epoch


def _objective(flags: ScriptFlags, say: Say) -> dict[str, Any]:
    prediction = flags["prediction_type"]
    if prediction not in (None, "epsilon", "v_prediction"):
        raise InvalidValue("--prediction_type", prediction, "epsilon or v_prediction", "choose one, or leave it out")
    return {
        "kind": "denoising",
        "min_snr_gamma": flags["snr_gamma"],
        "prediction_type": prediction,
        "noise_offset": float(flags["noise_offset"]),
        "timestep_bias": _timestep_bias(flags, say),
    }


def _timestep_bias(flags: ScriptFlags, say: Say) -> dict[str, Any] | None:
    strategy, last = flags["timestep_bias_strategy"], 1000
    used = {
        "none": (),
        "range": ("multiplier", "begin", "end"),
        "earlier": ("multiplier", "portion"),
        "later": ("multiplier", "portion"),
    }
    for name in ("multiplier", "begin", "end", "portion"):
        if name not in used[strategy] and flags.changed(f"timestep_bias_{name}"):
            say(f"--timestep_bias_{name}: no effect with --timestep_bias_strategy {strategy}")
    if strategy == "none":
        return None
    multiplier, width = flags["timestep_bias_multiplier"], int(flags["timestep_bias_portion"] * last)
    if multiplier <= 0:
        raise InvalidValue("--timestep_bias_multiplier", multiplier, "more than 0", "raise it")
    begin, end = flags["timestep_bias_begin"], flags["timestep_bias_end"]
    if strategy == "range" and not 0 <= begin < end <= last:
        raise InvalidValue("--timestep_bias_begin", [begin, end], f"0 <= begin < end <= {last}", "change them")
    if strategy != "range" and not 0 < width <= last:
        raise InvalidValue(
            "--timestep_bias_portion", flags["timestep_bias_portion"], "a share above 0, at most 1", "change it"
        )
    if strategy != "range":
        begin, end = (0, width) if strategy == "earlier" else (last - width, last)
    return {"begin": begin, "end": end, "multiplier": multiplier}


def _previews(flags: ScriptFlags, steps: int, per_epoch: int, seed: int, say: Say) -> dict[str, Any]:
    prompt, number = flags["validation_prompt"], flags["num_validation_images"]
    if prompt is None or not number > 0:
        for name in ("num_validation_images", "validation_epochs"):
            if flags.changed(name):
                say(f"--{name}: no effect without --validation_prompt" if prompt is None else f"--{name}: no previews")
        return {}
    every = max(1, min(steps, flags["validation_epochs"] * per_epoch))
    return {"sample_every": every, "samples": {"prompts": [prompt], "num_images": number, "seed": seed}}


def _repository(flags: ScriptFlags, say: Say) -> str | None:
    if not flags["push_to_hub"]:
        for name in ("hub_token", "hub_model_id"):
            if flags.changed(name):
                say(f"--{name}: no effect without --push_to_hub")
        return None
    return flags["hub_model_id"] or Path(flags["output_dir"]).expanduser().absolute().name


def _answer(flags: ScriptFlags, machine: Machine, base: BaseModel, data: Mapping[str, Any], say: Say) -> None:
    """Say what becomes of the flags that move nothing in a recipe."""
    if flags["enable_xformers_memory_efficient_attention"]:
        there = "is not needed" if "xformers" in machine.packages else "is not installed"
        say(f"--enable_xformers_memory_efficient_attention: xformers {there}; torch's own fused attention is used")
    if flags["allow_tf32"] and not machine.has_gpu:
        say("--allow_tf32: no effect without a GPU")
    if flags["dataloader_num_workers"]:
        say("--dataloader_num_workers: no effect; latents and captions are encoded before training and kept in memory")
    if flags["local_rank"] != -1:
        say("--local_rank: not read; accelerate launch and torchrun tell each process its rank")
    if flags["debug_loss"]:
        say("--debug_loss: the loss of every step is logged; the names of a step's files are not")
    if flags["repeats"] != 1 and flags["max_train_steps"] is not None and flags["validation_prompt"] is None:
        say("--repeats: no effect where --max_train_steps says how long the run is")
    from_hub = [name for name in (base.name, data.get("dataset", "")) if is_hub_id(name) and not Path(name).exists()]
    if flags["cache_dir"] and not from_hub:
        say("--cache_dir: no effect, since model and pictures are on this machine")
