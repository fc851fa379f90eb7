"""Captioned pictures as training samples: aspect buckets, latents encoded once, captions cached or live.

What is stored is the posterior of each view of a picture (`picture_views`), under the hash of its file: changing one
picture encodes one. What does not live here: finding the pictures (`picture_index`) and the order (`buckets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch, SampleKey
from vega_diffusion.data.buckets import BucketOrder, Size, bucket_sizes, nearest_bucket
from vega_diffusion.data.content_cache import ContentCache
from vega_diffusion.data.curation import CurationReport
from vega_diffusion.data.picture_index import Picture, PictureIndex
from vega_diffusion.data.picture_views import View, middle_of, pixels_of, time_ids, views_of
from vega_diffusion.data.prompt_cache import PromptCache
from vega_diffusion.data.row_cache import Progress
from vega_diffusion.data.tokens import Tokenize
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.specs.data import ImageLatentsSpec


@dataclass(frozen=True)
class Bucket:
    """The pictures of one size: their numbers in the index, each one's views, and the views' rows in the store."""

    size: Size
    numbers: tuple[int, ...]
    views: tuple[tuple[View, ...], ...]
    posteriors: np.ndarray
    rows: tuple[tuple[int, ...], ...]


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
    buckets, ready = [], 0
    total = len(index.pictures) * spec.variants
    for size, numbers in sort_into_buckets(index, spec).items():
        shape = (2, int(vae.config["latent_channels"]), size[1] // downscale, size[0] // downscale)  # type: ignore[index]
        identity: dict[str, str | int] = {"format": 1, "vae": vae_digest, "size": f"{size[0]}x{size[1]}"}
        if spec.interpolation != "lanczos":
            identity["interpolation"] = spec.interpolation
        store = ContentCache(root, identity, shape)
        buckets.append(
            _open_bucket(
                spec, index, vae, store, size, numbers, lambda done, _, before=ready: progress(before + done, total)
            )
        )
        ready += len(numbers) * spec.variants
        progress(ready, total)
    return buckets


def _open_bucket(
    spec: ImageLatentsSpec,
    index: PictureIndex,
    vae: nn.Module,
    store: ContentCache,
    size: Size,
    numbers: Sequence[int],
    progress: Progress,
) -> Bucket:
    """Return the bucket of one size, encoding the views that its store does not have yet."""
    views = [views_of(index.pictures[number], size, spec) for number in numbers]
    asked: dict[str, tuple[Picture, View]] = {}
    keys = []
    for number, some in zip(numbers, views, strict=True):
        for view in some:
            keys.append(_key(index.pictures[number], view, size))
            asked[keys[-1]] = (index.pictures[number], view)

    def encode(part: Sequence[str]) -> np.ndarray:
        return _encode(
            vae, [pixels_of(index.read(asked[key][0]), size, asked[key][1], spec.interpolation) for key in part]
        )

    posteriors, rows = store.rows(keys, encode, progress=progress)
    of_picture = [tuple(rows[start : start + spec.variants]) for start in range(0, len(rows), spec.variants)]
    return Bucket(size, tuple(numbers), tuple(views), posteriors, tuple(of_picture))


def sort_into_buckets(index: PictureIndex, spec: ImageLatentsSpec) -> dict[Size, list[int]]:
    """Return (width, height) -> numbers of the pictures that go there."""
    sizes = bucket_sizes(spec.resolution_px, spec.bucket_step_px, spec.max_aspect)
    members: dict[Size, list[int]] = {}
    for number, picture in enumerate(index.pictures):
        members.setdefault(nearest_bucket(picture.size, sizes), []).append(number)
    return dict(sorted(members.items()))


def _key(picture: Picture, view: View, size: Size) -> str:
    """Return what a view's posterior is kept under: the middle under the file's hash alone."""
    return picture.sha256 if view == middle_of(picture.size, size) else f"{picture.sha256} {view.key}"


@torch.no_grad()
def _encode(vae: nn.Module, pixels: Sequence[Tensor]) -> np.ndarray:
    """Return fp16 posteriors `[N, 2, C, H, W]`, means and standard deviations."""
    found = vae.encode(torch.stack(list(pixels)).to(next(vae.parameters()))).latent_dist  # type: ignore[operator]
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
        held_out: The pictures that were kept apart, where some were.
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
        held_out: ImageLatents | None = None,
    ) -> None:
        self.report, self.held_out = report, held_out
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
        drawn = [(item, self._variant(position)) for position, (_, item) in zip(positions, items, strict=True)]
        rows = [bucket.rows[item][variant] for item, variant in drawn]
        posteriors = torch.from_numpy(np.stack([bucket.posteriors[row] for row in rows])).float()
        mean, std = posteriors.unbind(1)
        latents = (mean + std * rng.normal(mean.shape[1:], "posterior")) * self.scaling_factor
        pictures = [self.index.pictures[bucket.numbers[item]] for _, item in items]
        kept = rng.uniform("empty") >= self.spec.empty_caption_rate
        chosen = [bucket.numbers[item] if keep else None for (_, item), keep in zip(items, kept.tolist(), strict=True)]
        captions = ["" if number is None else self.index.pictures[number].caption for number in chosen]
        views = [bucket.views[item][variant] for item, variant in drawn]
        ids = [time_ids(one, bucket.size, view) for one, view in zip(pictures, views, strict=True)]
        tensors = {"latents": latents, "time_ids": torch.tensor(ids)}
        tensors |= self._condition(chosen, captions)
        if self.spec.empty_condition == "zeros":
            tensors["keep"] = kept
        return Batch([picture.name for picture in pictures], tensors, captions)

    def keys(self, positions: Sequence[int]) -> list[SampleKey]:
        """Return what decides the samples at these positions: picture, caption, bucket, encoding and position."""
        spec, found = self.spec, []
        made = f"{self.encoding} scale={self.scaling_factor} {spec.seed} {spec.empty_caption_rate}"
        made += f" {spec.empty_condition}" + ("" if spec.interpolation == "lanczos" else f" {spec.interpolation}")
        for position in positions:
            number, item = self.order.item(position)
            bucket = self.buckets[number]
            picture = self.index.pictures[bucket.numbers[item]]
            view = bucket.views[item][self._variant(position)]
            said = f"{picture.sha256} {time_ids(picture, bucket.size, view)} {picture.caption!r}"
            said += " mirrored" if view.mirrored else ""
            found.append(SampleKey(f"{made} {said} at {position}", tuple(bucket.posteriors.shape[2:])))
        return found

    def _variant(self, position: int) -> int:
        return derive_seed(self.spec.seed, position, "variant") % self.spec.variants

    def _condition(self, chosen: Sequence[int | None], captions: Sequence[str]) -> dict[str, Tensor]:
        if self.prompts is not None:
            embeds, pooled = self.prompts.take(chosen)
            return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        input_ids, input_ids_2 = self.tokenize(captions)
        return {"input_ids": input_ids, "input_ids_2": input_ids_2}

    def fingerprint(self) -> str:
        """Return the identity of pictures, captions, autoencoder and tokenizers."""
        return f"image_latents {self.listing} {self.encoding} block={self.order.block}"
