"""What diffusers' scripts ask of a machine before anything is done: GPU, processes, optional packages, a login."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.diffusers_flags import ScriptFlags

Say = Callable[[str], object]

OPTIONAL = ("wandb", "tensorboard", "xformers")


@dataclass(frozen=True)
class Machine:
    """What a translation asks of the machine.

    Args:
        has_gpu: Whether fp16 can be trained in.
        processes: Of this run, over all machines.
        launched_precision: What `accelerate launch` was told.
        packages: Which of the optional packages are installed.
        wandb_login: Whether W&B knows who this is, or is told to stay offline.
        optimizers: Kind of optimizer -> why it cannot run here.
    """

    has_gpu: bool = False
    processes: int = 1
    launched_precision: str | None = None
    packages: frozenset[str] = frozenset()
    wandb_login: bool = True
    optimizers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, flags: ScriptFlags) -> Machine:
        """Return this one, as far as these flags ask for it: optional packages take seconds to load."""
        import torch

        from vega_diffusion.training.optimizer import unavailable_because

        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        asked = {"adamw_8bit": flags["use_8bit_adam"], "prodigy": flags["optimizer"].lower() == "prodigy"}
        kinds = {kind: unavailable_because(kind, found or "cpu") for kind, wanted in asked.items() if wanted}
        asks_wandb = flags["report_to"] in ("wandb", "all") and importlib.util.find_spec("wandb") is not None
        return cls(
            has_gpu=found is not None,
            processes=int(os.environ.get("WORLD_SIZE", "1")),
            launched_precision=os.environ.get("ACCELERATE_MIXED_PRECISION"),
            packages=frozenset(name for name in OPTIONAL if importlib.util.find_spec(name)),
            wandb_login=not asks_wandb or _wandb_login(),
            optimizers={kind: reason for kind, reason in kinds.items() if reason is not None},
        )


def tracker_of(flags: ScriptFlags, machine: Machine, say: Say) -> str | None:
    """Return a recipe's `tracker` as the flags say it, as far as the machine has it.

    Raises:
        InvalidValue: There is no such tracker.
    """
    wanted = flags["report_to"]
    if wanted not in ("tensorboard", "wandb", "all", "none"):
        raise InvalidValue("--report_to", wanted, "tensorboard, wandb, all or none", "choose one of them")
    if wanted in ("wandb", "all") and "wandb" in machine.packages and machine.wandb_login:
        return "wandb"
    if wanted == "wandb":
        there = "wandb" in machine.packages
        why = "does not know you (wandb login, or WANDB_MODE=offline)" if there else "is not installed"
        say(f"--report_to: wandb {why}; TensorBoard and metrics.jsonl are used instead")
    if wanted == "none":
        return None
    if "tensorboard" not in machine.packages:
        say("--report_to: tensorboard is not installed; metrics.jsonl alone is written")
    return "tensorboard"


def _wandb_login() -> bool:
    """Whether W&B could start a run: it asks for a login only once a run begins, which may be an hour from now."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    import wandb  # type: ignore[import-not-found]

    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # whatever keeps it from answering keeps it from running
        return False
