"""A micro-batch of every objective with the right shapes and no values: what a plan sends through the networks."""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scenes.crowd import MOST
from vega_diffusion.data.scenes.targets import MOST_MENTIONS, mention_sizes, slot_sizes
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.run import captions_cached

SHORT_CAPTION = 24


def latent_side(recipe: TrainRecipe, spec: ModelSpec) -> int:
    """Return the side of a run's square latents: pictures are as large as its data say, scenes as the model's own."""
    if isinstance(recipe.data, ImageLatentsSpec):
        return recipe.data.resolution_px // spec.autoencoder.downscale
    return spec.unet.sample_size


def example_batch(recipe: TrainRecipe, spec: ModelSpec) -> Batch:
    """Return one micro-batch of the right shapes with no values, on the current device."""
    count, vae = recipe.micro_batch_size, spec.autoencoder
    ids = [f"example {number}" for number in range(count)]
    tokens = torch.zeros(count, spec.text_encoder.max_position_embeddings, dtype=torch.int64)
    tensors: dict[str, Tensor]
    match recipe.objective.kind:
        case "autoencoding" | "tiny_autoencoding":
            tensors = {"pixels": torch.zeros(count, 3, vae.sample_size, vae.sample_size)}
        case "denoising" | "distillation":
            side = latent_side(recipe, spec)
            tensors = {
                "latents": torch.zeros(count, vae.latent_channels, side, side),
                "time_ids": torch.zeros(count, 6),
                "keep": torch.ones(count, dtype=torch.bool),
            }
            if captions_cached(recipe):
                pooled = spec.text_encoder_2.projection_dim if spec.text_encoder_2 else 0
                length = spec.text_encoder.max_position_embeddings
                tensors["prompt_embeds"] = torch.zeros(count, length, spec.unet.cross_attention_dim)
                tensors["pooled_prompt_embeds"] = torch.zeros(count, pooled)
            else:
                tensors |= {"input_ids": tokens, "input_ids_2": tokens}
        case "scene_text":
            tokens = tokens[:, :SHORT_CAPTION]  # the data source cuts the padding off
            tensors = {"input_ids": tokens, "input_ids_2": tokens} | {
                f"target.{slot}": torch.zeros(count, dtype=torch.int64) for slot in slot_sizes()
            }
            mentions = torch.zeros(count, MOST_MENTIONS, dtype=torch.int64)
            tensors |= {"mention_at": mentions} | {f"mention.{slot}": mentions for slot in mention_sizes()}
        case "scene_checking":
            classes = torch.zeros(count, MOST, dtype=torch.int64)
            tensors = {
                "pixels": torch.zeros(count, 3, vae.sample_size, vae.sample_size),
                "boxes": torch.zeros(count, MOST, 4),
                "nouns": classes,
                "colours": classes,
                "style": classes[:, 0],
                "background": classes[:, 0],
                "judged": torch.ones(count, dtype=torch.bool),
            }
        case _:
            assert_never(recipe.objective.kind)
    return Batch(ids, tensors, [""] * count)
