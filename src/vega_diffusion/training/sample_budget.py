"""How often a run may be looked at: previews and held-out losses take at most their share of the work.

Work is counted in multiply-accumulates from the real shapes, so that the answer is the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import torch

from vega_diffusion.models.build import build_component
from vega_diffusion.models.measure import count_macs, unet_macs
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe

HELD_OUT_DRAWS = 4
"""Timesteps at which each held-out sample is asked."""

SCENE_PROMPTS = (
    "a cat next to a slice of pizza",
    "a red car on a blue background",
    "three apples",
    "a dog on the beach",
    "a small house",
    "a penguin above a book",
    "a banana, flat icon",
    "a guitar",
)
PICTURE_PROMPTS = 4
"""What is drawn where a recipe names no prompts: these for scenes, that many captions for pictures."""

# A backward pass is twice the forward pass; through frozen weights it needs no gradients of theirs (measured on the
# meta device at Vega's shape: 3.1 and 2.1).
FULL_STEP, LORA_STEP = 3.0, 2.0


def preview_size(recipe: TrainRecipe, spec: ModelSpec) -> tuple[int, int]:
    """Return (width, height) of previews in px: what the run trains on."""
    if isinstance(recipe.data, ImageLatentsSpec):
        return recipe.data.resolution_px, recipe.data.resolution_px
    return spec.generation.width, spec.generation.height


def sample_interval(recipe: TrainRecipe, spec: ModelSpec) -> int | None:
    """Return the steps between two looks: `sample_every`, or the first multiple of it that keeps `samples.budget`."""
    every = recipe.sample_every
    if every is None or recipe.objective.kind not in ("denoising", "distillation"):
        return every
    width, height = preview_size(recipe, spec)
    forward = unet_macs(spec.unet, width, height, spec.autoencoder.downscale)
    step = forward * recipe.batch_size * (FULL_STEP if recipe.model.lora is None else LORA_STEP)
    return every * max(1, ceil(look_macs(recipe, spec) / (recipe.samples.budget * step * every)))


def look_macs(recipe: TrainRecipe, spec: ModelSpec) -> float:
    """Return the multiply-accumulates of one look: pictures of all prompts, and the held-out loss."""
    samples, (width, height) = recipe.samples, preview_size(recipe, spec)
    forward = unet_macs(spec.unet, width, height, spec.autoencoder.downscale)
    default = PICTURE_PROMPTS if isinstance(recipe.data, ImageLatentsSpec) else len(SCENE_PROMPTS)
    images = (len(samples.prompts) or default) * samples.num_images
    guidance = spec.generation.guidance_scale if samples.guidance_scale is None else samples.guidance_scale
    forwards = (samples.num_steps or spec.generation.num_steps) * (2 if guidance > 1 else 1)
    decode = _decoder_macs(spec.to_json(), width, height)
    return images * (forwards * forward + decode) + samples.num_held_out * HELD_OUT_DRAWS * forward


@lru_cache(maxsize=16)
def _decoder_macs(spec_json: str, width: int, height: int) -> int:
    spec = ModelSpec.from_json(spec_json)
    cells = (height // spec.autoencoder.downscale, width // spec.autoencoder.downscale)
    with torch.device("meta"):
        vae = build_component(spec, "vae")
        return count_macs(vae.decode, torch.zeros(1, spec.autoencoder.latent_channels, *cells))  # type: ignore[arg-type]
