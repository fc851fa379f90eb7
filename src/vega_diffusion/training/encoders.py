"""What turns a run's captions and pictures into numbers: tokenizers, cached text states, the frozen autoencoder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from vega_diffusion.data.prompt_cache import PromptCache, open_prompts
from vega_diffusion.data.scenes.tokenizer import load_tokenizer as load_scene_tokenizer
from vega_diffusion.data.tokens import TokenizerPair
from vega_diffusion.errors import VegaError
from vega_diffusion.models.checkpoint import load_tokenizer
from vega_diffusion.models.find import resolve_model
from vega_diffusion.objectives.conditioning import encode_tokens
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import load_weights, locate, seeded_component, with_own_autoencoder
from vega_diffusion.training.run_directory import vega_home


def load_tokenizers(recipe: TrainRecipe, spec: ModelSpec) -> TokenizerPair:
    """Return a recipe's tokenizers: the mini family's own for its presets, else those of the base's folder.

    A full-size preset has none: then they come from where the first text encoder does.

    Raises:
        VegaError: There is no model folder to take them from.
    """
    length, base = spec.text_encoder.max_position_embeddings, recipe.model.base
    home = base if base not in PRESETS else recipe.model.weights.get("text_encoder")
    if base not in PRESETS or spec.family != "mini":
        if home is None or home.startswith("run:"):
            raise VegaError(
                f"model.base: preset {base!r} comes without tokenizers; give a model folder, or one in "
                "model.weights.text_encoder"
            )
        folder = resolve_model(home)
        return TokenizerPair(load_tokenizer(folder, "tokenizer"), load_tokenizer(folder, "tokenizer_2"), length)
    return TokenizerPair(load_scene_tokenizer(), load_scene_tokenizer(second=True), length)


def load_vae(recipe: TrainRecipe, spec: ModelSpec) -> tuple[AutoencoderKL, Path]:
    """Return the frozen autoencoder of a recipe, with its own config's scaling factor, and its weights file.

    Raises:
        VegaError: The recipe names no weights, or they do not fit.
    """
    reference = recipe.model.weights.get("vae", None if recipe.model.base in PRESETS else recipe.model.base)
    if reference is None:
        raise VegaError("model.weights.vae: missing; latents need a trained autoencoder; give run:NAME or a folder")
    path = locate(reference, "vae")
    vae = seeded_component(with_own_autoencoder(spec, path), "vae", 0)
    load_weights(vae, "vae", path)
    assert isinstance(vae, AutoencoderKL)
    return vae.eval().requires_grad_(False), path


def open_captions(
    recipe: TrainRecipe,
    captions: Sequence[str],
    tokenizers: TokenizerPair,
    frozen: Mapping[str, nn.Module],
    device: torch.device,
) -> PromptCache | None:
    """Return encoded captions, or None where a text encoder is learning."""
    names = ("text_encoder", "text_encoder_2")
    if not set(names) <= frozen.keys() or set(names) & set(recipe.model.train):
        return None
    first, second = encoders = [frozen[name].to(device) for name in names]

    @torch.no_grad()
    def encode(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, ids_2 = tokenizers(captions)
        embeds, pooled = encode_tokens(first, second, ids.to(device), ids_2.to(device))
        return embeds.cpu(), pooled.cpu()

    weights = hashlib.sha256()
    for encoder in encoders:
        for name, tensor in sorted(encoder.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    identity = {"format": 3, "tokenizers": tokenizers.digest(), "encoders": weights.hexdigest()}
    with tqdm(unit="caption", desc="captions", file=sys.stderr, leave=False) as bar:
        return open_prompts(vega_home() / "prompts", identity, captions, encode, partial(moved, bar))


def moved(bar: tqdm, done: int, total: int) -> None:
    """Bring a progress bar to where the work is."""
    bar.total = total
    bar.update(done - bar.n)
