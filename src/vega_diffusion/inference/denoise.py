"""The denoising loop: from noisy latents to clean ones, one U-Net call a step.

It knows schedulers and conditioning, not prompts, files or pictures. Every operation and its order follow diffusers'
SDXL pipelines, which the tests hold it to bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vega_diffusion.errors import VegaError


class Cancelled(VegaError):
    """The caller asked to stop; nothing was made."""

    exit_code = 130


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net is told, one row an image; with guidance, `negative` holds the rows to move away from.

    Attributes:
        prompt_embeds: `[B, L, D]` hidden states of both text encoders, side by side.
        pooled_prompt_embeds: `[B, P]` pooled output of the second encoder.
        time_ids: `[B, 6]` original height and width, crop top and left, target height and width, in pixels.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    time_ids: Tensor

    def repeated(self, num_images: int) -> Conditioning:
        """Return the same rows for `num_images` images."""
        return Conditioning(
            self.prompt_embeds.repeat(num_images, 1, 1),
            self.pooled_prompt_embeds.repeat(num_images, 1),
            self.time_ids.repeat(num_images, 1),
        )

    def to(self, device: torch.device) -> Conditioning:
        """Return the same rows on a device."""
        return Conditioning(
            self.prompt_embeds.to(device), self.pooled_prompt_embeds.to(device), self.time_ids.to(device)
        )

    def after(self, first: Conditioning) -> Conditioning:
        """Return the rows of `first`, then these."""
        return Conditioning(
            torch.cat([first.prompt_embeds, self.prompt_embeds]),
            torch.cat([first.pooled_prompt_embeds, self.pooled_prompt_embeds]),
            torch.cat([first.time_ids, self.time_ids]),
        )


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: `uncond + scale (cond - uncond)`.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598, equation 6 with scale = 1 + w.
    """

    scale: float
    negative: Conditioning | None

    def to(self, device: torch.device) -> Guidance:
        """Return the same guidance on a device."""
        return Guidance(self.scale, None if self.negative is None else self.negative.to(device))


@dataclass(frozen=True)
class Kept:
    """The part of a picture that inpainting keeps: clean latents, their noise, and the mask (1 = redraw)."""

    latents: Tensor
    noise: Tensor
    mask: Tensor


@dataclass(frozen=True)
class StepState:
    """What a progress callback sees after a step.

    Attributes:
        step: Steps done, 1 .. num_steps.
        num_steps: Steps in all.
        t: The timestep just left.
        latents: `[B, C, h, w]`, a reference: copy it to keep it.
        x0: The model's guess of the clean latents, where the sampler knows one.
    """

    step: int
    num_steps: int
    t: float
    latents: Tensor
    x0: Tensor | None


@torch.inference_mode()
def denoise(
    unet: Any,
    scheduler: Any,
    timesteps: Tensor,
    latents: Tensor,
    conditioning: Conditioning,
    guidance: Guidance,
    generators: Sequence[torch.Generator],
    kept: Kept | None = None,
    on_step: Callable[[StepState], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Run the sampler over `timesteps`.

    Args:
        unet: A diffusers `UNet2DConditionModel`.
        scheduler: A diffusers scheduler with its timesteps set, not used before.
        timesteps: The scheduler's, or their tail when starting from a picture.
        latents: `[B, C, h, w]`, already scaled by the scheduler's initial sigma.
        conditioning: B rows.
        guidance: Scale and the B negative rows; `negative` None switches guidance off.
        generators: One an image, for samplers that add noise.
        kept: The part to keep, when inpainting.
        on_step: Called after every step.
        is_cancelled: Asked before every step.

    Returns:
        Clean latents `[B, C, h, w]`.

    Raises:
        Cancelled: `is_cancelled` returned True.
    """
    rows = conditioning if guidance.negative is None else conditioning.after(guidance.negative)
    added = {"text_embeds": rows.pooled_prompt_embeds, "time_ids": rows.time_ids}
    timestep_cond = _embedded_guidance(unet, guidance.scale, latents)
    extra = _step_arguments(scheduler, generators)
    for index, t in enumerate(timesteps):
        if is_cancelled is not None and is_cancelled():
            raise Cancelled(f"cancelled after {index} of {len(timesteps)} steps")
        model_input = latents if guidance.negative is None else torch.cat([latents] * 2)
        model_input = scheduler.scale_model_input(model_input, t)
        prediction = unet(
            model_input,
            t,
            encoder_hidden_states=rows.prompt_embeds,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        if guidance.negative is not None:
            uncond, cond = prediction.chunk(2)
            prediction = uncond + guidance.scale * (cond - uncond)
        dtype = latents.dtype
        result = scheduler.step(prediction, t, latents, **extra)
        latents = result.prev_sample.to(dtype)
        if kept is not None:
            latents = _keep(latents, kept, scheduler, timesteps, index)
        if on_step is not None:
            on_step(StepState(index + 1, len(timesteps), float(t), latents, _guess(result)))
    return latents


def _keep(latents: Tensor, kept: Kept, scheduler: Any, timesteps: Tensor, index: int) -> Tensor:
    """Put the kept part back, noised to the level of the next step."""
    original = kept.latents
    if index < len(timesteps) - 1:
        original = scheduler.add_noise(original, kept.noise, torch.tensor([timesteps[index + 1]]))
    return (1 - kept.mask) * original + kept.mask * latents


def _guess(result: Any) -> Tensor | None:
    """Return the scheduler's guess of the clean latents; each class spells it differently, some do not say."""
    for name in ("pred_original_sample", "denoised"):
        guess = getattr(result, name, None)
        if guess is not None:
            return guess
    return None


def _step_arguments(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Return the generator argument for the schedulers that take one."""
    if "generator" in inspect.signature(scheduler.step).parameters:
        return {"generator": list(generators)}
    return {}


def _embedded_guidance(unet: Any, scale: float, latents: Tensor) -> Tensor | None:
    """Return the guidance scale as an embedding for U-Nets distilled to take it as an input, else None.

    Source: Meng et al., On Distillation of Guided Diffusion Models, arXiv 2210.03142, section 3 (w-conditioning).
    """
    width = unet.config.time_cond_proj_dim
    if width is None:
        return None
    half = width // 2
    w = torch.tensor([scale - 1.0]).repeat(latents.shape[0]) * 1000.0
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = w[:, None] * frequencies[None, :]
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    if width % 2:
        embedding = torch.nn.functional.pad(embedding, (0, 1))
    return embedding.to(latents)
