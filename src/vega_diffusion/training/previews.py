"""What a run is looked at by: pictures as `vega generate` would draw them now, and the loss of held-out pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vega_diffusion.data.batches import BatchSource
from vega_diffusion.data.image_latents import ImageLatents
from vega_diffusion.data.interleaved_samples import InterleavedSamples
from vega_diffusion.data.tokens import TokenizerPair
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.inference.backends.torch_eager import TorchEager
from vega_diffusion.inference.denoise import Conditioning, Guidance, ImageRun, denoise
from vega_diffusion.inference.pictures import decode_latents
from vega_diffusion.inference.samplers import make_scheduler, set_steps
from vega_diffusion.objectives.build import build_denoising
from vega_diffusion.objectives.conditioning import encode_tokens
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.objective import DenoisingSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.loop import SampleFunction
from vega_diffusion.training.picture_grid import save_grid
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sample_budget import HELD_OUT_DRAWS, PICTURE_PROMPTS, SCENE_PROMPTS, preview_size
from vega_diffusion.training.student import Student

HELD_OUT_SEED = 1_000_003
COLUMNS = 8
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


def previews(recipe: TrainRecipe, spec: ModelSpec, directory: RunDirectory, source: BatchSource) -> SampleFunction:
    """Return a function that draws the recipe's prompts with the student's weights, and asks for held-out losses.

    The PNG `samples/step-N.png` holds a row of `num_images` pictures for every prompt (prompts side by side where that
    is one).
    """
    from vega_diffusion.training.encoders import load_tokenizers, load_vae
    from vega_diffusion.training.run import frozen_components

    vae: Any
    vae, _ = load_vae(recipe, spec)
    tokenizers = load_tokenizers(recipe, spec)
    pictures = source.sources[0] if isinstance(source, InterleavedSamples) else source
    prompts = recipe.samples.prompts or _default_prompts(pictures)
    held_out = pictures.held_out if isinstance(pictures, ImageLatents) else None
    frozen = frozen_components(recipe, spec)
    # Text encoders that do not learn are asked once and are gone while the run lasts.
    learns = set(TEXT_ENCODERS) & set(recipe.model.train)
    known = [] if learns else [_conditions(recipe, spec, list(frozen.values()), tokenizers, one) for one in prompts]
    frozen = frozen if learns else {}

    def sample(step: int, student: Student) -> dict[str, float]:
        unet: Any = student.get_submodule("unet")
        device = next(unet.parameters()).device
        conditions = known
        if learns:
            encoders = [getattr(student, name, None) or frozen[name].to(device) for name in TEXT_ENCODERS]
            conditions = [_conditions(recipe, spec, encoders, tokenizers, prompt) for prompt in prompts]
        rows = []
        for one in conditions:
            latents = _drawn(recipe, spec, unet, one, device)
            decoded = [decode_latents(vae.to(device), one.to(vae.dtype))[0] for one in latents.split(1)]
            rows.append(torch.cat(decoded).clamp(-1, 1).float().cpu())
        if recipe.samples.num_images == 1:
            rows = list(torch.cat(rows).split(COLUMNS))
        save_grid(rows, directory.samples / f"step-{step:08d}.png")
        return {} if held_out is None else {"held_out_loss": held_out_loss(student, spec, held_out, device)}

    return sample


@torch.no_grad()
def held_out_loss(student: Student, spec: ModelSpec, source: ImageLatents, device: torch.device) -> float:
    """Return the mean squared error over all held-out pictures, each at the same few timesteps with the same noise."""
    task = build_denoising(DenoisingSpec(min_snr_gamma=None), spec, {})
    task.to(device)
    number = len(source.index.pictures) * HELD_OUT_DRAWS
    losses = [
        float(task(student, source.load([position]).to(device), PositionRng(HELD_OUT_SEED, [position], device)).total)
        for position in range(number)
    ]
    return sum(losses) / number


def _default_prompts(source: BatchSource) -> tuple[str, ...]:
    if not isinstance(source, ImageLatents):
        return SCENE_PROMPTS
    captions = dict.fromkeys(picture.caption for picture in source.index.pictures)
    return tuple(captions)[:PICTURE_PROMPTS]


def _conditions(
    recipe: TrainRecipe,
    spec: ModelSpec,
    encoders: Sequence[Any],
    tokenizers: TokenizerPair,
    prompt: str,
) -> tuple[Conditioning, Guidance]:
    """Return a prompt's condition and guidance; what the recipe does not say is the model's own."""
    samples, own = recipe.samples, spec.generation
    negative = samples.negative_prompt if samples.negative_prompt is not None else own.negative_prompt
    ids, ids_2 = tokenizers([prompt, negative or ""])
    first, second = encoders
    device = next(first.parameters()).device
    with torch.no_grad():
        embeds, pooled = encode_tokens(first, second, ids.to(device), ids_2.to(device))
    if negative is None and spec.force_zeros_for_empty_prompt:
        embeds[1], pooled[1] = 0, 0
    width, height = preview_size(recipe, spec)
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype, device=device)
    wanted, against = (Conditioning(embeds[row : row + 1], pooled[row : row + 1], time_ids) for row in (0, 1))
    scale = own.guidance_scale if samples.guidance_scale is None else samples.guidance_scale
    guided = scale > 1 and spec.unet.time_cond_proj_dim is None
    return wanted, Guidance(scale, against if guided else None)


def _drawn(
    recipe: TrainRecipe,
    spec: ModelSpec,
    unet: Any,
    conditions: tuple[Conditioning, Guidance],
    device: torch.device,
) -> Tensor:
    """Return the latents of a prompt's pictures, `[num_images, C, h, w]`, drawn one by one for memory's sake."""
    wanted, guidance = conditions[0].to(device), conditions[1].to(device)
    (width, height), down = preview_size(recipe, spec), spec.autoencoder.downscale
    found = []
    for seed in range(recipe.samples.seed, recipe.samples.seed + recipe.samples.num_images):
        scheduler = make_scheduler(spec.generation.sampler, spec.schedule.to_config())
        steps = recipe.samples.num_steps or spec.generation.num_steps
        set_steps(scheduler, spec.generation.sampler, steps, device)
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn((1, spec.unet.in_channels, height // down, width // down), generator=generator)
        start = noise.to(device) * scheduler.init_noise_sigma
        run = ImageRun(
            scheduler,
            scheduler.timesteps,
            start,
            wanted,
            guidance,
            [generator],
            guidance_width=spec.unet.time_cond_proj_dim,
        )
        found.append(denoise(TorchEager(lambda: unet), run))
    return torch.cat(found)
