"""Builds a recipe's data source: scenes, icons, tokenizers and, for latents, the frozen autoencoder and its cache."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, assert_never

import torch
from torch import nn
from tqdm import tqdm

from vega_diffusion.data.batches import BatchSource
from vega_diffusion.data.latent_cache import LatentCache, LatentCacheBuilder
from vega_diffusion.data.row_cache import folder_name
from vega_diffusion.data.scene_captions import SceneCaptions
from vega_diffusion.data.scene_checks import SceneChecks
from vega_diffusion.data.scene_images import SceneImages, icons_folder
from vega_diffusion.data.scene_latents import SceneLatents
from vega_diffusion.data.scene_stream import SceneStream, phrasings, scene_stream, stream_digest, stream_identity
from vega_diffusion.data.scenes.atlas import SpriteAtlas, sample_folder
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import (
    ImageLatentsSpec,
    SceneCaptionsSpec,
    SceneChecksSpec,
    SceneImagesSpec,
    SceneLatentsSpec,
)
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import digest
from vega_diffusion.training.encoders import load_tokenizers, load_vae, moved, open_captions
from vega_diffusion.training.picture_sources import open_images
from vega_diffusion.training.run_directory import vega_home


def build_source(
    recipe: TrainRecipe, spec: ModelSpec, device: torch.device, frozen: Mapping[str, nn.Module] | None = None
) -> BatchSource:
    """Build the recipe's data source; pictures are drawn and encoded on `device`.

    Args:
        recipe: The run.
        spec: Its model.
        device: Where to draw and encode.
        frozen: The frozen components; where both text encoders are among them, captions are encoded once.

    Raises:
        VegaError: Icons, tokenizers or the autoencoder's weights are not there.
    """
    data = recipe.data
    if isinstance(data, ImageLatentsSpec):
        return open_images(recipe, data, spec, device, frozen or {})
    stream = scene_stream(data.mix)
    scenes = f"scenes={stream_digest(stream, data.seed)}"
    match data:
        case SceneImagesSpec():
            atlas, version = load_atlas(data.icons)
            return SceneImages(SceneRenderer(atlas.to(device)), stream, data.seed, f"icons={version} {scenes}")
        case SceneCaptionsSpec():
            tokenizers = load_tokenizers(recipe, spec)
            return SceneCaptions(stream, tokenizers, data.seed, f"{scenes} tokenizers={tokenizers.digest()}")
        case SceneLatentsSpec():
            tokenizers = load_tokenizers(recipe, spec)
            cache, scaling_factor, name = open_latents(recipe, data, spec, stream, device)
            version = f"cache={name} scale={scaling_factor} tokenizers={tokenizers.digest()}"
            captions = [text for scene in cache.captions for text in scene]
            prompts = open_captions(recipe, captions, tokenizers, frozen or {}, device)
            return SceneLatents(data, cache, tokenizers, scaling_factor, version, prompts)
        case SceneChecksSpec():
            atlas, version = load_atlas(data.icons)
            return SceneChecks(data, atlas.to(device), f"icons={version}")
        case _:
            assert_never(data)


def load_atlas(icons: str | None) -> tuple[SpriteAtlas, str]:
    """Return the sprites and a hash of them."""
    folder = icons_folder(icons, vega_home()) or sample_folder()
    atlas = SpriteAtlas.load(folder)
    return atlas, digest(sorted(path for path in folder.iterdir() if path.suffix in (".webp", ".json")))[:16]


def open_latents(
    recipe: TrainRecipe, data: SceneLatentsSpec, spec: ModelSpec, stream: SceneStream, device: torch.device
) -> tuple[LatentCache, float, str]:
    """Return the latents of a recipe, encoding what is not on disk yet, the autoencoder's scaling factor, and a name.

    The name stands for the latents in a run's fingerprint. It knows of the scenes what the first ones show, as in runs
    that were saved before caches knew more. The autoencoder is gone when this returns: training needs its memory.
    """
    vae: Any
    vae, path = load_vae(recipe, spec)
    scaling_factor = float(vae.config["scaling_factor"])
    atlas, icons = load_atlas(data.icons)
    identity: dict[str, str | int] = {
        "format": 2,
        "seed": data.seed,
        "scenes": stream_digest(stream, data.seed),
        "icons": icons,
        "vae": digest([path]),
        "captions_per_scene": data.captions_per_scene,
    }
    builder = LatentCacheBuilder(
        vega_home() / "latents",
        identity | stream_identity(data.mix),
        SceneRenderer(atlas.to(device)),
        stream,
        partial(phrasings, seed=data.seed),
        vae.to(device),
        data.seed,
        data.captions_per_scene,
    )
    with tqdm(unit="scene", desc="latents", file=sys.stderr, leave=False) as bar:
        cache = builder.open(data.num_scenes, partial(moved, bar))
    return cache, scaling_factor, folder_name(identity)
