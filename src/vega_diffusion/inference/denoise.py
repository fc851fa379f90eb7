"""Denoising: from noisy latents to clean ones, one U-Net evaluation a step, for one request or several at once.

It knows schedulers and conditioning, not prompts, files or pictures. Every operation and its order follow diffusers'
SDXL pipelines, which the tests hold it to bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.backends.protocol import Denoiser, KeepsText, Question, joined
from vega_diffusion.specs.profile import StepPlan


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
    """Classifier-free guidance: `uncond + scale (cond - uncond)`, and `cond + kept (scale - 1) (cond - uncond)'`.

    The second form, with the difference of the last step that knew it, is for steps that do not ask for `uncond`; with
    `kept` 0 they are not guided.

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598, equation 6 with scale = 1 + w.
    """

    scale: float
    negative: Conditioning | None
    kept: float = 0.0

    def to(self, device: torch.device) -> Guidance:
        """Return the same guidance on a device."""
        return replace(self, negative=None if self.negative is None else self.negative.to(device))


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


@dataclass
class ImageRun:
    """Images of one request on their way from noise to clean latents; `advance` takes them one step further.

    Args:
        scheduler: A diffusers scheduler with its timesteps set, not used before.
        timesteps: The scheduler's, or their tail when starting from a picture.
        latents: `[B, C, h, w]`, already scaled by the scheduler's initial sigma; what they are now.
        conditioning: B rows.
        guidance: Scale and the B negative rows; `negative` None switches guidance off.
        generators: One an image, for samplers that add noise.
        plan: Which steps are guided, and which compute the U-Net's deep layers; None: all of them, where there is a
            negative.
        kept: The part to keep, when inpainting.
        on_step: Called after every step.
        is_cancelled: Asked before every step.
        guidance_width: Size of the guidance embedding of U-Nets that take one, else None.
    """

    scheduler: Any
    timesteps: Tensor
    latents: Tensor
    conditioning: Conditioning
    guidance: Guidance
    generators: Sequence[torch.Generator]
    plan: StepPlan | None = None
    kept: Kept | None = None
    on_step: Callable[[StepState], None] | None = None
    is_cancelled: Callable[[], bool] | None = None
    guidance_width: int | None = None

    def __post_init__(self) -> None:
        self.step = 0
        guided = self.guidance.negative is not None
        self.steps = self.plan or StepPlan.of(len(self.timesteps), (0.0, 1.0), 1, guided)
        self._deep: Tensor | None = None
        self._difference: Tensor | None = None
        self._extra = _step_arguments(self.scheduler, self.generators)
        both = self.conditioning if self.guidance.negative is None else self.conditioning.after(self.guidance.negative)
        self._rows = {True: both, False: self.conditioning}

    @property
    def is_done(self) -> bool:
        """Whether the latents are clean."""
        return self.step == len(self.timesteps)

    @property
    def is_deep(self) -> bool:
        """Whether the next step computes the deep layers."""
        return self.steps.deep[self.step]

    @property
    def num_rows(self) -> int:
        """How many rows the next step sends through the U-Net."""
        return len(self.latents) * (1 + self.steps.guided[self.step])

    def check_cancelled(self) -> None:
        """Raise `Cancelled` where the caller asks for it."""
        if self.is_cancelled is not None and self.is_cancelled():
            raise Cancelled(f"cancelled after {self.step} of {len(self.timesteps)} steps")

    def question(self) -> Question:
        """Return what the next step asks of the U-Net: the negative rows, where it is guided, then the others."""
        t, guided = self.timesteps[self.step], self.steps.guided[self.step]
        x_t = torch.cat([self.latents] * 2) if guided else self.latents
        rows = self._rows[guided]
        cond = _embedded_guidance(self.guidance_width, self.guidance.scale, self.latents)
        return Question(
            self.scheduler.scale_model_input(x_t, t),
            t.expand(len(x_t)).to(x_t.device),
            rows.prompt_embeds,
            rows.pooled_prompt_embeds,
            rows.time_ids,
            cond,
        )

    def deep(self) -> Tensor:
        """Return the deep state that was kept, of the rows that the next step asks about."""
        assert self._deep is not None, "the first step of a plan is a deep one"
        return self._deep[-self.num_rows :]

    def take(self, prediction: Tensor, deep: Tensor | None) -> None:
        """Move on by one step.

        Args:
            prediction: The U-Net's answer to `question()`.
            deep: Its deep state, where the step computed it.
        """
        t = self.timesteps[self.step]
        if self.steps.guided[self.step]:
            uncond, cond = prediction.chunk(2)
            difference = cond - uncond
            prediction = uncond + self.guidance.scale * difference
            self._difference = difference if self.guidance.kept else None
        elif self._difference is not None:
            prediction = prediction + self.guidance.kept * (self.guidance.scale - 1) * self._difference
        if deep is not None:
            self._deep = deep
        dtype = self.latents.dtype
        result = self.scheduler.step(prediction, t, self.latents, **self._extra)
        self.latents = result.prev_sample.to(dtype)
        if self.kept is not None:
            self.latents = _keep(self.latents, self.kept, self.scheduler, self.timesteps, self.step)
        self.step += 1
        if self.on_step is not None:
            state = StepState(self.step, len(self.timesteps), float(t), self.latents, _guess(result))
            self.on_step(state)


@torch.inference_mode()
def denoise(denoiser: Denoiser, run: ImageRun) -> Tensor:
    """Return the clean latents `[B, C, h, w]` of a run, alone with the U-Net.

    Raises:
        Cancelled: `run.is_cancelled` returned True.
    """
    with denoiser.text_kept() if isinstance(denoiser, KeepsText) else nullcontext():
        while not run.is_done:
            run.check_cancelled()
            advance(denoiser, [run])
    return run.latents


@torch.inference_mode()
def advance(denoiser: Denoiser, runs: Sequence[ImageRun]) -> None:
    """Take runs one step further by one U-Net evaluation.

    Args:
        denoiser: The U-Net.
        runs: With latents of one shape and texts of one length; all or none of them at a step of deep layers.
    """
    question = joined([run.question() for run in runs])
    sizes = [run.num_rows for run in runs]
    deep: Sequence[Tensor | None] = [None] * len(runs)
    if not runs[0].is_deep:
        prediction = denoiser.shallow(question, torch.cat([run.deep() for run in runs]))
    elif any(run.steps.reuses for run in runs):
        prediction, state = denoiser.full(question)
        deep = state.split(sizes)
    else:
        prediction = denoiser.predict(question)
    for run, rows, kept in zip(runs, prediction.split(sizes), deep, strict=True):
        run.take(rows, kept)


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


def _embedded_guidance(width: int | None, scale: float, latents: Tensor) -> Tensor | None:
    """Return the guidance scale as an embedding for U-Nets distilled to take it as an input, else None.

    Source: Meng et al., On Distillation of Guided Diffusion Models, arXiv 2210.03142, section 3 (w-conditioning).
    """
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
