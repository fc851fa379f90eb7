"""How a picture comes to its bucket's size: scaling, cut, mirroring, and the numbers by which SDXL is told of them.

What does not live here: which bucket a picture goes to (`buckets`) and what is kept of it (`image_latents`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.data.buckets import Size
from vega_diffusion.data.picture_index import Picture, opened
from vega_diffusion.diffusion.randomness import derive_seed
from vega_diffusion.specs.data import ImageLatentsSpec


@dataclass(frozen=True)
class View:
    """Scaled to `scaled` (width, height), mirrored or not, cut out from (`top`, `left`) of what that gives."""

    scaled: Size
    top: int
    left: int
    mirrored: bool = False

    @property
    def key(self) -> str:
        """What tells this view from others of the same picture and bucket."""
        return f"{self.top} {self.left} {'mirrored' if self.mirrored else 'plain'}"


def middle_of(size: Size, bucket: Size) -> View:
    """Return the smallest scaling that covers a bucket, and the cut from its middle."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    scaled = (max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale)))
    return View(scaled, (scaled[1] - bucket[1]) // 2, (scaled[0] - bucket[0]) // 2)


def views_of(picture: Picture, bucket: Size, spec: ImageLatentsSpec) -> tuple[View, ...]:
    """Return a spec's `variants` of a picture: every draw is a function of (seed, file, variant).

    Mirrorings are spread evenly: of four variants at a rate of a half, two are mirrored in every picture.
    """
    middle = middle_of(picture.size, bucket)
    start = derive_seed(spec.seed, picture.sha256, "mirrored") / 2**63
    found = []
    for variant in range(spec.variants):
        mirrored = (start + variant / spec.variants) % 1.0 < spec.flip_rate
        top, left = middle.top, middle.left
        if spec.crop == "random":
            top = derive_seed(spec.seed, picture.sha256, variant, "top") % (middle.scaled[1] - bucket[1] + 1)
            left = derive_seed(spec.seed, picture.sha256, variant, "left") % (middle.scaled[0] - bucket[0] + 1)
        found.append(View(middle.scaled, top, left, mirrored))
    return tuple(found)


def pixels_of(content: bytes, bucket: Size, view: View | None = None, interpolation: str = "lanczos") -> Tensor:
    """Return a picture's file at a bucket's size, fp32 `[3, H, W]` in [-1, 1]; transparent parts are white.

    Args:
        content: The file.
        bucket: Width and height.
        view: The middle unless given.
        interpolation: Of the scaling, by Pillow's name.
    """
    picture = opened(content)
    view = view or middle_of(picture.size, bucket)
    picture = picture.resize(view.scaled, Image.Resampling[interpolation.upper()])
    if view.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.crop((view.left, view.top, view.left + bucket[0], view.top + bucket[1]))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1


def time_ids(picture: Picture, bucket: Size, view: View | None = None) -> list[float]:
    """Return SDXL's size and crop numbers: own height and width, top and left of the cut, target height and width.

    Source: Podell et al. 2023, section 2.2 (arXiv 2307.01952).
    """
    view, (width, height) = view or middle_of(picture.size, bucket), picture.own_size
    return [float(value) for value in (height, width, view.top, view.left, bucket[1], bucket[0])]
