"""What drawing gives, whoever draws: pictures with their records, and progress on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from vega_diffusion.inference.metadata import PictureRecord


@dataclass(frozen=True)
class GeneratedImage:
    """One picture and everything that made it.

    Attributes:
        image: The picture.
        seed: Its own seed: the request's plus its index.
        record: For the PNG's metadata.
        warnings: Lines the user should see.
    """

    image: Image.Image
    seed: int
    record: PictureRecord
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """What a progress callback gets after every step.

    Attributes:
        image_index: Which image of the request, from 0.
        step: Steps done.
        num_steps: Steps in all.
        preview: Call it for a PIL picture of the present state, at most 256 px a side (costs a small decode).
    """

    image_index: int
    step: int
    num_steps: int
    preview: Callable[[], Image.Image]


OnStep = Callable[[Progress], None]
