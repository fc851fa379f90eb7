"""Captioned pictures as training samples: aspect buckets, latents encoded once, captions cached or live.

What is stored is each picture's posterior at the size of its bucket, under the hash of its file: changing one picture
encodes one. What does not live here: finding the pictures (`picture_index`) and the order (`buckets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch, SampleKey
from vega_diffusion.data.buckets import BucketOrder, Size, bucket_sizes, nearest_bucket
from vega_diffusion.data.content_cache import ContentCache
from vega_diffusion.data.curation import CurationReport
from vega_diffusion.data.picture_index import Picture, PictureIndex, opened
from vega_diffusion.data.prompt_cache import PromptCache
from vega_diffusion.data.row_cache import Progress
from vega_diffusion.data.tokens import Tokenize
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.specs.data import ImageLatentsSpec


@dataclass(frozen=True)
class Cut:
    """How a picture comes to its bucket's size: scaled to `scaled` (width, height), cut out from (`top`, `left`)."""

    scaled: Size
    top: int
    left: int


def cut_to(size: Size, bucket: Size) -> Cut:
    """Return the smallest scaling that covers a bucket, and the cut from its middle."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    scaled = (max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale)))
    return Cut(scaled, (scaled[1] - bucket[1]) // 2, (scaled[0] - bucket[0]) // 2)


def pixels_of(content: bytes, bucket: Size) -> Tensor:
    """Return a picture's file at a bucket's size, fp32 `[3, H, W]` in [-1, 1]; transparent parts are white."""
    picture = opened(content)
    cut = cut_to(picture.size, bucket)
    picture = picture.resize(cut.scaled, Image.Resampling.LANCZOS)
    picture = picture.crop((cut.left, cut.top, cut.left + bucket[0], cut.top + bucket[1]))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class Bucket:
    """The pictures of one size, their numbers in the folder, and their rows in the store of that size."""

    size: Size
    numbers: tuple[int, ...]
    posteriors: np.ndarray
    rows: tuple[int, ...]


def open_buckets(
    spec: ImageLatentsSpec,
    index: PictureIndex,
    vae: nn.Module,
    root: Path,
    vae_digest: str,
    downscale: int,
    progress: Progress = lambda done, total: None,
) -> list[Bucket]:
    """Sort the pictures into buckets and encode those that no store has yet.

    Args:
        spec: Sizes of the buckets.
        index: The pictures.
        vae: The frozen autoencoder, in evaluation mode.
        root: Folder of all stores.
        vae_digest: Of its weights.
        downscale: Pixels to a latent cell.
        progress: Called with (pictures ready, pictures).

    Raises:
        VegaError: The disk is full or a picture is gone; what was encoded is kept.
    """
    sizes = bucket_sizes(spec.resolution_px, spec.bucket_step_px, spec.max_aspect)
    members: dict[Size, list[int]] = {}
    for number, picture in enumerate(index.pictures):
        members.setdefault(nearest_bucket(picture.size, sizes), []).append(number)
    buckets, ready = [], 0
    for size, numbers in sorted(members.items()):
        keys = [index.pictures[number].sha256 for number in numbers]
        pictures = dict(zip(keys, (index.pictures[number] for number in numbers), strict=True))
        shape = (2, int(vae.config["latent_channels"]), size[1] // downscale, size[0] // downscale)  # type: ignore[index]
        store = ContentCache(root, {"format": 1, "vae": vae_digest, "size": f"{size[0]}x{size[1]}"}, shape)
        posteriors, rows = store.rows(
            keys,
            lambda part, known=pictures, to=size: _encode(vae, [index.read(known[key]) for key in part], to),
            progress=lambda done, _, before=ready: progress(before + done, len(index.pictures)),
        )
        buckets.append(Bucket(size, tuple(numbers), posteriors, tuple(rows)))
        ready += len(numbers)
        progress(ready, len(index.pictures))
    return buckets


@torch.no_grad()
def _encode(vae: nn.Module, files: Sequence[bytes], size: Size) -> np.ndarray:
    """Return fp16 posteriors `[N, 2, C, H, W]`, means and standard deviations."""
    place = next(vae.parameters())
    pixels = torch.stack([pixels_of(content, size) for content in files]).to(place)
    found = vae.encode(pixels).latent_dist  # type: ignore[operator]
    return torch.stack([found.mean, found.std], dim=1).half().cpu().numpy()


class ImageLatents:
    """Denoising batches of pictures: like `SceneLatents`, with one bucket a micro-batch.

    Args:
        spec: Rates and the meaning of an empty caption.
        index: The pictures.
        buckets: Their latents.
        tokenize: Both tokenizers.
        scaling_factor: Of the autoencoder.
        block: Samples of a micro-batch.
        listing: Identity of pictures, captions and sizes, for the fingerprint.
        encoding: Identity of autoencoder and tokenizers.
        prompts: The captions as frozen encoders read them; None gives token ids.
        report: What became of the collection.
    """

    def __init__(
        self,
        spec: ImageLatentsSpec,
        index: PictureIndex,
        buckets: Sequence[Bucket],
        tokenize: Tokenize,
        scaling_factor: float,
        block: int,
        listing: str,
        encoding: str,
        prompts: PromptCache | None = None,
        report: CurationReport | None = None,
    ) -> None:
        self.report = report
        self.spec, self.index, self.buckets, self.tokenize = spec, index, tuple(buckets), tokenize
        self.scaling_factor, self.listing, self.encoding, self.prompts = scaling_factor, listing, encoding, prompts
        self.order = BucketOrder([len(bucket.numbers) for bucket in buckets], block, spec.seed)

    def load(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions, which lie in one block; every draw is a function of (seed, position).

        Raises:
            ValueError: The positions lie in blocks of different buckets: a bug of the caller.
        """
        items = [self.order.item(position) for position in positions]
        numbers = {number for number, _ in items}
        if len(numbers) != 1:
            raise ValueError(f"positions {list(positions)[:3]}... are of {len(numbers)} buckets")
        bucket = self.buckets[numbers.pop()]
        rng = PositionRng(derive_seed(self.spec.seed, "samples"), positions)
        posteriors = torch.from_numpy(np.stack([bucket.posteriors[bucket.rows[item]] for _, item in items])).float()
        mean, std = posteriors.unbind(1)
        latents = (mean + std * rng.normal(mean.shape[1:], "posterior")) * self.scaling_factor
        pictures = [self.index.pictures[bucket.numbers[item]] for _, item in items]
        kept = rng.uniform("empty") >= self.spec.empty_caption_rate
        chosen = [bucket.numbers[item] if keep else None for (_, item), keep in zip(items, kept.tolist(), strict=True)]
        captions = ["" if number is None else self.index.pictures[number].caption for number in chosen]
        tensors = {"latents": latents, "time_ids": torch.tensor([time_ids(one, bucket.size) for one in pictures])}
        tensors |= self._condition(chosen, captions)
        if self.spec.empty_condition == "zeros":
            tensors["keep"] = kept
        return Batch([picture.name for picture in pictures], tensors, captions)

    def keys(self, positions: Sequence[int]) -> list[SampleKey]:
        """Return what decides the samples at these positions: picture, caption, bucket, encoding and position."""
        spec, found = self.spec, []
        made = f"{self.encoding} {spec.seed} {spec.empty_caption_rate} {spec.empty_condition}"
        for position in positions:
            number, item = self.order.item(position)
            bucket = self.buckets[number]
            picture = self.index.pictures[bucket.numbers[item]]
            said = f"{picture.sha256} {time_ids(picture, bucket.size)} {picture.caption!r}"
            found.append(SampleKey(f"{made} {said} at {position}", tuple(bucket.posteriors.shape[2:])))
        return found

    def _condition(self, chosen: Sequence[int | None], captions: Sequence[str]) -> dict[str, Tensor]:
        if self.prompts is not None:
            embeds, pooled = self.prompts.take(chosen)
            return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        input_ids, input_ids_2 = self.tokenize(captions)
        return {"input_ids": input_ids, "input_ids_2": input_ids_2}

    def fingerprint(self) -> str:
        """Return the identity of pictures, captions, autoencoder and tokenizers."""
        return f"image_latents {self.listing} {self.encoding} block={self.order.block}"


def time_ids(picture: Picture, bucket: Size) -> list[float]:
    """Return SDXL's size and crop numbers: own height and width, top and left of the cut, target height and width.

    Source: Podell et al. 2023, section 2.2 (arXiv 2307.01952).
    """
    cut, (width, height) = cut_to(picture.size, bucket), picture.own_size
    return [float(value) for value in (height, width, cut.top, cut.left, bucket[1], bucket[0])]
