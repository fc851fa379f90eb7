"""From the flags of diffusers' scripts to a recipe's optimizer and the course of its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vega_diffusion.errors import InvalidValue, Unavailable
from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, ScriptFlags
from vega_diffusion.specs.optimizer import lr_schedule_of_diffusers

Say = Callable[[str], object]

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def optimizer_section(flags: ScriptFlags, processes: int, missing: Mapping[str, str], say: Say) -> dict[str, Any]:
    """Return a recipe's `optimizer` as the flags say it.

    Args:
        flags: The command line.
        processes: Of the run.
        missing: Kind of optimizer -> why it cannot run here.
        say: Takes a line for what has no effect or is replaced.

    Raises:
        InvalidValue: There is no such optimizer.
        Unavailable: It cannot run here, and nothing takes its place.
    """
    wanted = flags["optimizer"].lower()
    if wanted not in ("adamw", "prodigy"):
        raise InvalidValue(
            "--optimizer", flags["optimizer"], "AdamW or prodigy", "choose one; recipes of vega train know more"
        )
    lr = flags["learning_rate"]
    if flags["scale_lr"]:
        lr *= flags["gradient_accumulation_steps"] * flags["train_batch_size"] * processes
    section: dict[str, Any] = {
        "kind": wanted,
        "lr": lr,
        "betas": [flags["adam_beta1"], flags["adam_beta2"]],
        "eps": flags["adam_epsilon"],
        "weight_decay": flags["adam_weight_decay"],
    }
    own = ("beta3", "decouple", "use_bias_correction", "safeguard_warmup")
    if wanted == "prodigy":
        if "prodigy" in missing:
            raise Unavailable(f"--optimizer: prodigy cannot run here ({missing['prodigy']}); use AdamW")
        section |= {name: flags[f"prodigy_{name}"] for name in own}
        if flags["use_8bit_adam"]:
            say("--use_8bit_adam: no effect with --optimizer prodigy")
    else:
        for name in own:
            if flags.changed(f"prodigy_{name}"):
                say(f"--prodigy_{name}: no effect with --optimizer {flags['optimizer']}")
        if flags["use_8bit_adam"] and "adamw_8bit" in missing:
            say(f"--use_8bit_adam: {missing['adamw_8bit']}; fused AdamW of 32 bits is used instead")
        elif flags["use_8bit_adam"]:
            section["kind"] = "adamw_8bit"
    return section | _of_text_encoders(flags, lr, wanted, say)


def _of_text_encoders(flags: ScriptFlags, lr: float, optimizer: str, say: Say) -> dict[str, Any]:
    """Return what DreamBooth sets apart for the text encoders; elsewhere they learn like the U-Net."""
    if flags.script != DREAMBOOTH:
        return {}
    if not flags["train_text_encoder"]:
        for name in ("text_encoder_lr", "adam_weight_decay_text_encoder"):
            if flags.changed(name):
                say(f"--{name}: no effect without --train_text_encoder")
        return {}
    decays = dict.fromkeys(TEXT_ENCODERS, flags["adam_weight_decay_text_encoder"])
    if optimizer == "prodigy":  # it finds the rate itself; two of them would confuse it
        say("--text_encoder_lr: no effect with --optimizer prodigy, which has one rate for all")
        return {"weight_decays": decays}
    return {"weight_decays": decays, "lr_factors": dict.fromkeys(TEXT_ENCODERS, flags["text_encoder_lr"] / lr)}


def lr_schedule_section(flags: ScriptFlags, steps: int, lr: float, say: Say) -> dict[str, Any]:
    """Return a recipe's `lr_schedule` as the flags say it, for a run of so many steps whose peak rate is `lr`.

    Raises:
        InvalidValue: There is no such schedule, it has no use for a flag, or the warm-up outlasts the run.
    """
    name, warmup = flags["lr_scheduler"], flags["lr_warmup_steps"]
    schedule = lr_schedule_of_diffusers(name, lr, warmup, flags["lr_num_cycles"], flags["lr_power"])
    if name == "constant" and warmup and flags.changed("lr_warmup_steps"):
        say("--lr_warmup_steps: no effect with --lr_scheduler constant; constant_with_warmup has a warm-up")
    if schedule.warmup_steps >= steps:
        raise InvalidValue(
            "--lr_warmup_steps", warmup, f"fewer than the {steps} steps of this run", "lower it, or train longer"
        )
    return schedule.model_dump(mode="json", exclude_defaults=True)
