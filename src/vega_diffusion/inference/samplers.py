"""Samplers by name: which diffusers scheduler, with which settings, on the model's own noise schedule.

The names belong to `specs/request.py`; the loop that calls a scheduler is in `denoise.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.request import SAMPLERS

# name -> (module of diffusers.schedulers, class, settings over the model's scheduler config, A1111's name)
_TABLE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "euler": ("scheduling_euler_discrete", "EulerDiscreteScheduler", {}, "Euler"),
    "euler_a": ("scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", {}, "Euler a"),
    "ddim": ("scheduling_ddim", "DDIMScheduler", {}, "DDIM"),
    "dpmpp_2m": ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler", {}, "DPM++ 2M"),
    "dpmpp_2m_karras": (
        "scheduling_dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True},
        "DPM++ 2M Karras",
    ),
    "dpmpp_2m_sde_karras": (
        "scheduling_dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
        "DPM++ 2M SDE Karras",
    ),
    "unipc": ("scheduling_unipc_multistep", "UniPCMultistepScheduler", {}, "UniPC"),
    "heun": ("scheduling_heun_discrete", "HeunDiscreteScheduler", {}, "Heun"),
    "lcm": ("scheduling_lcm", "LCMScheduler", {}, "LCM"),
}


def make_scheduler(sampler: str, config: Mapping[str, Any]) -> Any:
    """Return a fresh diffusers scheduler; schedulers hold state, so every image gets its own.

    Args:
        sampler: One of `SAMPLERS`.
        config: The model's `scheduler_config.json`: betas, prediction type, spacing.

    Raises:
        InvalidValue: The name is unknown, or the sampler cannot follow the model's noise schedule.
    """
    if sampler not in _TABLE:
        raise InvalidValue("sampler", sampler, f"one of: {', '.join(SAMPLERS)}", "choose one of them")
    module, name, settings, _ = _TABLE[sampler]
    scheduler_class = getattr(import_module(f"diffusers.schedulers.{module}"), name)
    known = inspect.signature(scheduler_class.__init__).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise InvalidValue("sampler", sampler, "one that knows zero terminal SNR, as this model needs", "take euler")
    # What is left out are settings of other samplers, as the model's own scheduler stored them.
    stored = {key: value for key, value in config.items() if key in known}
    return scheduler_class.from_config(stored | settings)


def set_steps(scheduler: Any, sampler: str, num_steps: int, device: Any) -> None:
    """Lay out the timesteps of `num_steps` steps.

    Raises:
        InvalidValue: The sampler has no schedule of that many steps.
    """
    if sampler == "lcm":
        most = scheduler.config.original_inference_steps
        if num_steps > most:
            raise InvalidValue("num_steps", num_steps, f"at most {most} with sampler lcm", "2 to 8 is usual")
    scheduler.set_timesteps(num_steps, device=device)


def public_name(sampler: str) -> str:
    """Return the name that other programs' metadata use, as "DPM++ 2M Karras"."""
    return _TABLE[sampler][3]
