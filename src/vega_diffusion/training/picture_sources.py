"""A run's own pictures as samples: the collection, its filters, encoding, pictures of a class, pictures held out."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from vega_diffusion.data.curation import CurationReport, curate
from vega_diffusion.data.image_latents import ImageLatents, open_buckets
from vega_diffusion.data.interleaved_samples import InterleavedSamples
from vega_diffusion.data.picture_dataset import DatasetPictures
from vega_diffusion.data.picture_folder import FolderPictures
from vega_diffusion.data.picture_index import Captioned, Collection, PictureIndex, index_pictures
from vega_diffusion.data.picture_shards import ShardPictures
from vega_diffusion.data.tokens import TokenizerPair
from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import ImageLatentsSpec, PriorSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.class_pictures import fill_class_pictures
from vega_diffusion.training.components import digest
from vega_diffusion.training.encoders import load_tokenizers, load_vae, moved, open_captions
from vega_diffusion.training.run_directory import vega_home


def open_images(
    recipe: TrainRecipe, data: ImageLatentsSpec, spec: ModelSpec, device: torch.device, frozen: Mapping[str, nn.Module]
) -> ImageLatents | InterleavedSamples:
    """Return a collection of pictures as samples, encoding what is not on disk yet; says what was left out.

    Raises:
        InvalidValue: The buckets' sides are not what autoencoder and U-Net can halve.
        VegaError: The pictures, the tokenizers or the autoencoder's weights are not there.
    """
    needed = spec.autoencoder.downscale * 2 ** (spec.unet.num_levels - 1)
    if data.bucket_step_px % needed:
        raise InvalidValue("data.bucket_step_px", data.bucket_step_px, f"a multiple of {needed}", "change it")
    encoding = _Encoding(recipe, spec, device, frozen)
    share = recipe.micro_batch_size // (1 + len(data.prior))
    if not data.prior:
        return encoding.samples(data, share, recipe.samples.num_held_out)
    priors = [_prior_data(recipe, data, prior, device) for prior in data.prior]
    own = encoding.samples(data, share, recipe.samples.num_held_out)
    sources = [own, *(encoding.samples(prior, share) for prior in priors)]
    return InterleavedSamples(sources, [1.0, *(prior.weight for prior in data.prior)])


def _prior_data(
    recipe: TrainRecipe, data: ImageLatentsSpec, prior: PriorSpec, device: torch.device
) -> ImageLatentsSpec:
    """Return the pictures of a prior as a run's own are described, after drawing those that it lacks."""
    left_out = data.empty_caption_rate if prior.empty_caption_rate is None else prior.empty_caption_rate
    return data.model_copy(
        update={
            "folder": str(fill_class_pictures(recipe, prior, data.resolution_px, device)),
            "caption_column": data.caption_column if prior.caption is None else "text",
            "shards": None,
            "dataset": None,
            "dataset_config": None,
            "split": "train",
            "image_column": "image",
            "caption": prior.caption,
            "empty_caption_rate": left_out,
            "max_pictures": prior.num_pictures if prior.caption else None,
            "prior": (),
        }
    )


class _Encoding:
    """What turns pictures and captions of a run into latents and states: one autoencoder and two tokenizers."""

    def __init__(
        self, recipe: TrainRecipe, spec: ModelSpec, device: torch.device, frozen: Mapping[str, nn.Module]
    ) -> None:
        self.recipe, self.spec, self.device, self.frozen = recipe, spec, device, frozen
        self.tokenizers = load_tokenizers(recipe, spec)
        self.vae: Any
        self.vae, path = load_vae(recipe, spec)
        self.vae_digest = digest([path])
        self.version = f"vae={self.vae_digest} tokenizers={self.tokenizers.digest()}"

    def samples(self, data: ImageLatentsSpec, block: int, num_held_out: int = 0) -> ImageLatents:
        """Return a spec's pictures as samples, those that are held out beside them."""
        index, report = open_pictures(data)
        tqdm.write(str(report), file=sys.stderr)
        for line in cut_captions(index, self.tokenizers):
            tqdm.write(line, file=sys.stderr)
        held_out = None
        if num_held_out:
            apart, index = index.split(num_held_out, data.seed)
            if not index.pictures:
                most = f"fewer than the {len(apart.pictures)} pictures there are"
                raise InvalidValue("samples.num_held_out", num_held_out, most, "lower it")
            plain = {"crop": "center", "flip_rate": 0.0, "variants": 1, "empty_caption_rate": 0.0}
            held_out = self._samples(data.model_copy(update=plain), apart, 1)
        return self._samples(data, index, block, report, held_out)

    def _samples(
        self,
        data: ImageLatentsSpec,
        index: PictureIndex,
        block: int,
        report: CurationReport | None = None,
        held_out: ImageLatents | None = None,
    ) -> ImageLatents:
        downscale = self.spec.autoencoder.downscale
        with tqdm(unit="picture", desc="latents", file=sys.stderr, leave=False) as bar:
            vae = self.vae.to(self.device)
            progress = partial(moved, bar)
            buckets = open_buckets(data, index, vae, vega_home() / "images", self.vae_digest, downscale, progress)
        said = "".join(f"{one.sha256} {one.name} {one.caption}\n" for one in index.pictures)
        listing = hashlib.sha256(said.encode()).hexdigest()[:20]
        sizes = f"{data.resolution_px}/{data.bucket_step_px}/{data.max_aspect}"
        views = f" views={data.crop}/{data.flip_rate}/{data.variants}/{data.interpolation}" if data.augmented else ""
        captions = [one.caption for one in index.pictures]
        prompts = open_captions(self.recipe, captions, self.tokenizers, self.frozen, self.device)
        version, factor = f"pictures={listing} sizes={sizes}{views}", float(self.vae.config["scaling_factor"])
        return ImageLatents(
            data, index, buckets, self.tokenizers, factor, block, version, self.version, prompts, report, held_out
        )


def cut_captions(index: PictureIndex, tokenizers: TokenizerPair) -> list[str]:
    """Return a line for captions longer than what the text encoders read, with the first one's lost words."""
    cut = [(one, lost) for one in index.pictures if (lost := tokenizers.lost(one.caption))]
    if not cut:
        return []
    first, lost = cut[0]
    return [
        f"{len(cut):,} captions are longer than the {tokenizers.length} tokens that are read; of {first.name} this is "
        f"cut off: {lost!r}"
    ]


def open_pictures(data: ImageLatentsSpec) -> tuple[PictureIndex, CurationReport]:
    """Return a spec's pictures as far as its filters let them through, and what became of the others.

    Raises:
        VegaError: The collection cannot be read, or nothing is left of it.
    """
    collection = open_collection(data)
    with tqdm(unit="picture", desc="reading", file=sys.stderr, leave=False) as bar:
        index = index_pictures(collection, vega_home() / "indexes", partial(moved, bar))
    index, report = curate(index, data.filters)
    return (index if data.max_pictures is None else index.split(data.max_pictures, data.seed)[0]), report


def open_collection(data: ImageLatentsSpec) -> Collection:
    """Return the folder, the shards or the data set that a spec names, under its one caption where it has one.

    Raises:
        VegaError: It is not there or cannot be read.
    """
    found = _collection(data)
    return found if data.caption is None else Captioned(found, data.caption)


def _collection(data: ImageLatentsSpec) -> Collection:
    if data.folder is not None:
        return FolderPictures(Path(data.folder).expanduser(), data.caption_column)
    if data.shards is not None:
        return ShardPictures(Path(data.shards).expanduser(), data.caption_column)
    assert data.dataset is not None
    columns = (data.image_column, data.caption_column)
    return DatasetPictures(data.dataset, data.split, *columns, data.dataset_config)
