"""Samples during a run: what the student makes now, as a picture in the run's folder and numbers in its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.data.scene_stream import scene_mix
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.autoencoding import per_sample_mean, psnr
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.loop import SampleFunction
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sources import load_atlas, load_tokenizers, load_vae
from vega_diffusion.training.student import Student

COUNT = 16
HELD_OUT_SEED = 1_000_003
NUM_STEPS = 12
PROMPTS = (
    "a cat next to a slice of pizza",
    "a red car on a blue background",
    "three apples",
    "a dog on the beach",
    "a small house",
    "a penguin above a book",
    "a banana, flat icon",
    "a guitar",
)

SampleMaker = Callable[[ModelSpec, RunDirectory], SampleFunction]


def sample_maker(recipe: TrainRecipe) -> SampleMaker | None:
    """Return what makes the sample function of a recipe, or None where there is nothing to see."""
    if recipe.sample_every is None:
        return None
    match recipe.objective.kind:
        case "autoencoding":
            return partial(_reconstructions, recipe)
        case "denoising" | "distillation":
            return partial(_pictures, recipe)
        case _:
            return None


def _reconstructions(recipe: TrainRecipe, spec: ModelSpec, directory: RunDirectory) -> SampleFunction:
    """Held-out scenes, original above reconstruction, and the mean PSNR in dB."""
    assert not isinstance(recipe.data, ImageLatentsSpec), "autoencoders learn from scenes"
    atlas, _ = load_atlas(recipe.data.icons)
    mix = scene_mix(recipe.data.mix)
    scenes = [sample_scene(HELD_OUT_SEED, position, split="held-out", mix=mix) for position in range(COUNT)]
    pixels = SceneRenderer(atlas).render(scenes)

    def sample(step: int, student: Student) -> dict[str, float]:
        vae = student.get_submodule("vae")
        device = next(vae.parameters()).device
        mean = vae.encode(pixels.to(device)).latent_dist.mean  # type: ignore[operator]
        shown = vae.decode(mean).sample.float().clamp(-1, 1).cpu()  # type: ignore[operator]
        save_grid([pixels[:8], shown[:8], pixels[8:], shown[8:]], directory.samples / f"step-{step:08d}.png")
        return {"held_out_psnr": float(psnr(per_sample_mean((shown - pixels).square())).mean())}

    return sample


def _pictures(recipe: TrainRecipe, spec: ModelSpec, directory: RunDirectory) -> SampleFunction:
    """The same prompts with the same noise each time, by deterministic DDIM steps with guidance."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from vega_diffusion.objectives.conditioning import encode_tokens
    from vega_diffusion.training.run import frozen_components

    vae: Any
    vae, _ = load_vae(recipe, spec)
    frozen = frozen_components(recipe, spec)
    tokenizers = load_tokenizers(recipe, spec)
    config = spec.schedule.to_config()
    size = float(spec.autoencoder.sample_size)

    def sample(step: int, student: Student) -> dict[str, float]:
        unet = student.get_submodule("unet")
        device = next(unet.parameters()).device
        names = ("text_encoder", "text_encoder_2")
        first, second = (getattr(student, name, None) or frozen[name].to(device) for name in names)
        ids, ids_2 = tokenizers(PROMPTS)
        embeds, pooled = encode_tokens(first, second, ids.to(device), ids_2.to(device))
        embeds, pooled = (torch.cat([torch.zeros_like(value), value]) for value in (embeds, pooled))
        time_ids = torch.tensor([[size, size, 0, 0, size, size]], device=device).expand(2 * len(PROMPTS), 6)
        shape = (spec.autoencoder.latent_channels, spec.unet.sample_size, spec.unet.sample_size)
        latents = PositionRng(HELD_OUT_SEED, range(len(PROMPTS)), device).normal(shape, "sample")
        scheduler: Any = DDIMScheduler.from_config(config)
        scheduler.set_timesteps(NUM_STEPS)
        for t in scheduler.timesteps:
            added = {"text_embeds": pooled, "time_ids": time_ids}
            both = unet(torch.cat([latents] * 2), t, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
            without, with_prompt = both.float().chunk(2)
            guided = without + spec.generation.guidance_scale * (with_prompt - without)
            latents = scheduler.step(guided, t, latents).prev_sample
        decoded = vae.to(device).decode(latents / vae.config["scaling_factor"]).sample
        save_grid([decoded.clamp(-1, 1).cpu()], directory.samples / f"step-{step:08d}.png")
        return {}

    return sample


def save_grid(rows: Sequence[Tensor], path: object) -> None:
    """Write rows of pictures, each `[N, 3, H, W]` in [-1, 1], as one PNG."""
    lines = [torch.cat(list(row), dim=2) for row in rows]
    levels = ((torch.cat(lines, dim=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(str(path))
