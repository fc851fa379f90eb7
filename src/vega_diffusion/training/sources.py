"""Builds a recipe's data source: scenes, icons, tokenizers and, for latents, the frozen autoencoder and its cache."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm

from vega_diffusion.data.batches import BatchSource
from vega_diffusion.data.curation import CurationReport, curate
from vega_diffusion.data.image_latents import ImageLatents, open_buckets
from vega_diffusion.data.latent_cache import LatentCache, LatentCacheBuilder
from vega_diffusion.data.picture_dataset import DatasetPictures
from vega_diffusion.data.picture_folder import FolderPictures
from vega_diffusion.data.picture_index import Collection, PictureIndex, index_pictures
from vega_diffusion.data.picture_shards import ShardPictures
from vega_diffusion.data.prompt_cache import PromptCache, open_prompts
from vega_diffusion.data.scene_captions import SceneCaptions
from vega_diffusion.data.scene_checks import SceneChecks
from vega_diffusion.data.scene_images import SceneImages, icons_folder
from vega_diffusion.data.scene_latents import SceneLatents
from vega_diffusion.data.scene_stream import SceneStream, phrasings, scene_stream, stream_digest
from vega_diffusion.data.scenes.atlas import SpriteAtlas, sample_folder
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.tokenizer import load_tokenizer as load_scene_tokenizer
from vega_diffusion.data.tokens import TokenizerPair
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.models.checkpoint import load_tokenizer
from vega_diffusion.models.find import resolve_model
from vega_diffusion.objectives.conditioning import encode_tokens
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import (
    ImageLatentsSpec,
    SceneCaptionsSpec,
    SceneChecksSpec,
    SceneImagesSpec,
    SceneLatentsSpec,
)
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import (
    digest,
    load_weights,
    locate,
    seeded_component,
    with_own_autoencoder,
)
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
            cache, scaling_factor = open_latents(recipe, data, spec, stream, device)
            version = f"cache={cache.folder.name} scale={scaling_factor} tokenizers={tokenizers.digest()}"
            captions = [text for scene in cache.captions for text in scene]
            prompts = open_captions(recipe, captions, tokenizers, frozen or {}, device)
            return SceneLatents(data, cache, tokenizers, scaling_factor, version, prompts)
        case SceneChecksSpec():
            atlas, version = load_atlas(data.icons)
            return SceneChecks(data, atlas.to(device), f"icons={version}")
        case _:
            assert_never(data)


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
        return open_prompts(vega_home() / "prompts", identity, captions, encode, partial(_moved, bar))


def open_images(
    recipe: TrainRecipe, data: ImageLatentsSpec, spec: ModelSpec, device: torch.device, frozen: Mapping[str, nn.Module]
) -> ImageLatents:
    """Return a collection of pictures as samples, encoding what is not on disk yet; says what was left out.

    Raises:
        InvalidValue: The buckets' sides are not what autoencoder and U-Net can halve.
        VegaError: The pictures, the tokenizers or the autoencoder's weights are not there.
    """
    needed = spec.autoencoder.downscale * 2 ** (spec.unet.num_levels - 1)
    if data.bucket_step_px % needed:
        raise InvalidValue("data.bucket_step_px", data.bucket_step_px, f"a multiple of {needed}", "change it")
    tokenizers = load_tokenizers(recipe, spec)
    index, report = open_pictures(data)
    tqdm.write(str(report), file=sys.stderr)
    vae: Any
    vae, path = load_vae(recipe, spec)
    scaling_factor, vae_digest = float(vae.config["scaling_factor"]), digest([path])
    with tqdm(unit="picture", desc="latents", file=sys.stderr, leave=False) as bar:
        buckets = open_buckets(
            data,
            index,
            vae.to(device),
            vega_home() / "images",
            vae_digest,
            spec.autoencoder.downscale,
            partial(_moved, bar),
        )
    said = "".join(f"{one.sha256} {one.name} {one.caption}\n" for one in index.pictures)
    listing = hashlib.sha256(said.encode()).hexdigest()[:20]
    sizes = f"{data.resolution_px}/{data.bucket_step_px}/{data.max_aspect}"
    encoding = f"vae={vae_digest} tokenizers={tokenizers.digest()}"
    captions = [one.caption for one in index.pictures]
    prompts = open_captions(recipe, captions, tokenizers, frozen, device)
    block = recipe.micro_batch_size
    version = f"pictures={listing} sizes={sizes}"
    return ImageLatents(data, index, buckets, tokenizers, scaling_factor, block, version, encoding, prompts, report)


def open_pictures(data: ImageLatentsSpec) -> tuple[PictureIndex, CurationReport]:
    """Return a spec's pictures as far as its filters let them through, and what became of the others.

    Raises:
        VegaError: The collection cannot be read, or nothing is left of it.
    """
    collection = open_collection(data)
    with tqdm(unit="picture", desc="reading", file=sys.stderr, leave=False) as bar:
        index = index_pictures(collection, vega_home() / "indexes", partial(_moved, bar))
    return curate(index, data.filters)


def open_collection(data: ImageLatentsSpec) -> Collection:
    """Return the folder, the shards or the data set that a spec names.

    Raises:
        VegaError: It is not there or cannot be read.
    """
    if data.folder is not None:
        return FolderPictures(Path(data.folder).expanduser(), data.caption_column)
    if data.shards is not None:
        return ShardPictures(Path(data.shards).expanduser(), data.caption_column)
    assert data.dataset is not None
    return DatasetPictures(data.dataset, data.split, data.image_column, data.caption_column)


def load_atlas(icons: str | None) -> tuple[SpriteAtlas, str]:
    """Return the sprites and a hash of them."""
    folder = icons_folder(icons, vega_home()) or sample_folder()
    atlas = SpriteAtlas.load(folder)
    return atlas, digest(sorted(path for path in folder.iterdir() if path.suffix in (".webp", ".json")))[:16]


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


def open_latents(
    recipe: TrainRecipe, data: SceneLatentsSpec, spec: ModelSpec, stream: SceneStream, device: torch.device
) -> tuple[LatentCache, float]:
    """Return the latents of a recipe, encoding what is not on disk yet, and the autoencoder's scaling factor.

    The autoencoder is gone when this returns: training needs its memory.
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
        identity,
        SceneRenderer(atlas.to(device)),
        stream,
        partial(phrasings, seed=data.seed),
        vae.to(device),
        data.seed,
        data.captions_per_scene,
    )
    with tqdm(unit="scene", desc="latents", file=sys.stderr, leave=False) as bar:
        cache = builder.open(data.num_scenes, partial(_moved, bar))
    return cache, scaling_factor


def _moved(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
