"""Distances between a folder of pictures and real scenes: the second ruler, which knows nothing of prompts or nouns.

Blur, noise and fading raise it clearly; red in place of green hardly does, since the embedding was trained to name
things whatever their hue. Colours are the checker's matter.

What lives here: reading the folder, drawing and keeping the reference, the report. What does not: the formulas
(`frechet.py`) and the network (`models/efficientnet_lite.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.data.scene_images import icons_folder
from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import CANVAS_SIZE, STYLES
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.evaluation.frechet import Embedding, FrechetStatistics, frechet_distance, kernel_distance
from vega_diffusion.models.efficientnet_lite import WEIGHTS_SHA256, load_efficientnet_lite
from vega_diffusion.models.home import vega_home

BATCH = 8
"""Pictures embedded at once: fixed, since the last bits of an embedding depend on it."""

SPLIT = "dev"
DEFAULT_COUNT = 1000

Progress = Callable[[int], object]


@dataclass(frozen=True)
class FrechetReport:
    """Both distances of a folder, and what they would be were its pictures real.

    Args:
        folder: The pictures.
        num_images: How many.
        reference: What they are compared with, in words.
        num_reference: How many pictures that is.
        fd_effnet: Frechet distance; never compare it with an FID, nor with one of another `num_images`.
        kernel_distance: Unbiased squared MMD, about 0 for real pictures.
        real_fd_effnet: The same for as many fresh real scenes, or None where the reference is a folder.
        real_kernel_distance: Likewise.
        embedding: Name of the embedding.
        embedding_sha256: Hash of its weights.
    """

    folder: str
    num_images: int
    reference: str
    num_reference: int
    fd_effnet: float
    kernel_distance: float
    real_fd_effnet: float | None
    real_kernel_distance: float | None
    embedding: str
    embedding_sha256: str


def effnet_embedding() -> Embedding:
    """Return the named embedding of FD-EffNet.

    Raises:
        Unavailable: The extra `eval` is not installed.
    """
    return Embedding("efficientnet-lite0", WEIGHTS_SHA256, load_efficientnet_lite().embed)


def measure_folder(
    folder: Path,
    reference: FrechetStatistics,
    embedding: Embedding,
    *,
    described: str,
    real: FrechetStatistics | None = None,
    progress: Progress = lambda pictures: None,
) -> FrechetReport:
    """Compare the PNG files of a folder (not of folders in it) with a reference.

    Args:
        folder: Pictures of 128 x 128 px, or the folder of a finished evaluation.
        reference: Real pictures, embedded by `embedding`.
        embedding: What looks at them.
        described: What the reference is, in words.
        real: As many real pictures again, none of them in the reference: the lowest distance to be hoped for.
        progress: Receives how many pictures more are embedded.

    Raises:
        VegaError: No pictures, an unreadable one, one of another size, or another embedding.
    """
    found = folder_statistics(folder, embedding, progress)
    return FrechetReport(
        folder=str(folder),
        num_images=found.count,
        reference=described,
        num_reference=reference.count,
        fd_effnet=frechet_distance(found, reference),
        kernel_distance=kernel_distance(found, reference),
        real_fd_effnet=None if real is None else frechet_distance(real, reference),
        real_kernel_distance=None if real is None else kernel_distance(real, reference),
        embedding=embedding.name,
        embedding_sha256=embedding.sha256,
    )


def folder_statistics(
    folder: Path, embedding: Embedding, progress: Progress = lambda pictures: None
) -> FrechetStatistics:
    """Embed the PNG files of a folder, in the order of their names; see `measure_folder`."""
    return FrechetStatistics.from_pictures(_batches(read_folder(folder), progress), embedding)


def picture_paths(folder: Path) -> list[Path]:
    """Return the PNG files of a folder, at least two, sorted by name; of an evaluation's folder, its `pictures/`.

    Raises:
        MissingFile: The folder cannot be read.
        VegaError: It holds fewer than two, or an evaluation that is not finished.
    """
    if (folder / "run.json").is_file():
        if not (folder / "result.json").is_file():
            raise VegaError(f"{folder}: this evaluation is not finished; let vega evaluate finish it first")
        folder = folder / "pictures"
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.is_file())
    except OSError as error:
        raise MissingFile(f"{folder}: cannot be read ({error.strerror}); give a folder of PNG pictures") from error
    if len(paths) < 2:
        raise VegaError(
            f"{folder}: holds {len(paths)} PNG pictures; allowed: 2 or more; give a folder with pictures directly in it"
        )
    return paths


def read_folder(folder: Path) -> Tensor:
    """Return the PNG files of a folder as uint8 [N, 3, 128, 128]."""
    return torch.stack([_read_picture(path) for path in picture_paths(folder)])


def scene_statistics(
    renderer: SceneRenderer,
    embedding: Embedding,
    *,
    start: int,
    count: int,
    seed: int,
    home: Path,
    progress: Progress = lambda pictures: None,
) -> FrechetStatistics:
    """Draw scenes of the grammar's split `dev` and embed them, or read what an earlier call kept of the same pixels.

    Args:
        renderer: Draws them; with other icons the pictures are others, and so is the kept set.
        embedding: What looks at them.
        start: First position in the stream.
        count: How many, 2 or more.
        seed: Names the stream.
        home: Folder for kept sets, as `$VEGA_HOME/frechet`.
        progress: Receives how many pictures more are embedded.

    Raises:
        InvalidValue: A value is not allowed.
        UnreadableModel: The kept set is damaged.
    """
    check_stream(count, seed)
    scenes = [sample_scene(seed, position, split=SPLIT) for position in range(start, start + count)]
    parts = [renderer.render(scenes[first : first + 32]) for first in range(0, count, 32)]
    pixels = ((torch.cat(parts) + 1) * 127.5).round().byte().cpu()
    # The pixels themselves name the set: no change of icons, grammar or renderer can go unnoticed.
    name = hashlib.sha256(embedding.sha256.encode() + pixels.numpy().tobytes()).hexdigest()[:16]
    kept = home / f"{SPLIT}-{seed}-{start}-{count}-{name}"
    if kept.is_dir():
        progress(count)
        return FrechetStatistics.load(kept)
    statistics = FrechetStatistics.from_pictures(_batches(pixels, progress), embedding)
    statistics.save(kept)
    return statistics


def scene_frechet(folder: Path, count: int = DEFAULT_COUNT, seed: int = 0) -> float:
    """Return the Frechet distance of a folder's pictures from real scenes, as `vega evaluate frechet` measures it.

    Raises:
        VegaError: As `measure_folder`; or the extra `eval` is not installed.
    """
    embedding, renderer = effnet_embedding(), scene_renderer(None)
    known = scene_statistics(renderer, embedding, start=0, count=count, seed=seed, home=vega_home() / "frechet")
    return measure_folder(folder, known, embedding, described="scenes").fd_effnet


def scene_renderer(icons: str | None) -> SceneRenderer:
    """Return the renderer of real scenes in all styles.

    Args:
        icons: Folder that `vega data icons` filled; None: `$VEGA_HOME/icons`, else the sample in the package.

    Raises:
        VegaError: The folder is not there or damaged.
    """
    source = icons_folder(icons, vega_home())
    return SceneRenderer(SpriteAtlas.load(source, styles=STYLES, slugs=load_vocabulary().slugs))


def check_stream(count: int, seed: int) -> None:
    """Check how many scenes of which stream are asked for.

    Raises:
        InvalidValue: A value is not allowed.
    """
    if count < 2:
        raise InvalidValue("count", count, "2 or more", "say how many real scenes to compare with")
    if seed < 0:
        raise InvalidValue("seed", seed, "0 or more", "choose another seed")


def _batches(pixels: Tensor, progress: Progress) -> Iterator[Tensor]:
    for first in range(0, len(pixels), BATCH):
        batch = pixels[first : first + BATCH]
        yield batch.float() / 127.5 - 1
        progress(len(batch))


def _read_picture(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            size: Sequence[int] = picture.size
            levels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise MissingFile(f"{path}: cannot be read as a picture ({error}); draw it again or remove it") from error
    if tuple(size) != (CANVAS_SIZE, CANVAS_SIZE):
        raise InvalidValue(
            str(path), f"{size[0]} x {size[1]} px", f"{CANVAS_SIZE} x {CANVAS_SIZE} px", "give pictures of that size"
        )
    return torch.from_numpy(levels.copy()).permute(2, 0, 1)
