"""Captioned latents on disk: scenes drawn and encoded once, then read by memory map in every step.

What is stored is each picture's posterior (mean and standard deviation, fp16), so that a step can draw fresh latents;
its captions as text, so that new text encoders cost nothing; its size and crop numbers. A cache's folder is named by a
hash of all that decides its content but its length, so changing a learning rate recomputes nothing and asking for more
scenes only adds them. How it lies on disk, and how the processes of a run share the work, is `row_cache`'s affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vega_diffusion.data.row_cache import BATCH, Progress, RowCache
from vega_diffusion.data.scene_stream import SceneStream
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import Scene

Captioner = Callable[[Scene, int, int], Sequence[str]]
"""(scene, its position, how many) -> that many phrasings of its caption; a pure function."""


@dataclass(frozen=True)
class LatentCache:
    """An open cache.

    Args:
        folder: Where it lies.
        posteriors: fp16 `[N, 2, C, H, W]`, mean and standard deviation, a read-only memory map.
        time_ids: int16 `[N, 6]`.
        captions: N tuples of phrasings.
    """

    folder: Path
    posteriors: np.ndarray
    time_ids: np.ndarray
    captions: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.captions)


class LatentCacheBuilder:
    """Makes or extends a cache and opens it.

    Args:
        root: Folder of all caches.
        identity: What decides the content (scene seed, icons, weights of the autoencoder, number of captions).
        renderer: Draws scenes.
        stream: Chooses scenes.
        captioner: Phrases captions.
        vae: The frozen autoencoder, in evaluation mode on the renderer's device.
        seed: Seed of the scenes.
        captions_per_scene: Phrasings stored with each scene.
    """

    def __init__(
        self,
        root: Path,
        identity: dict[str, str | int],
        renderer: SceneRenderer,
        stream: SceneStream,
        captioner: Captioner,
        vae: nn.Module,
        seed: int,
        captions_per_scene: int,
    ) -> None:
        self.renderer, self.stream, self.captioner, self.vae = renderer, stream, captioner, vae
        self.seed, self.captions_per_scene = seed, captions_per_scene
        shape = tuple(self._posterior([stream(seed, 0)]).shape[1:])
        self.rows = RowCache(root, identity, {"posteriors": shape})

    def open(self, num_scenes: int, progress: Progress = lambda done, total: None) -> LatentCache:
        """Return the first `num_scenes` scenes, encoding those that are not there yet.

        Args:
            num_scenes: Length of the returned cache.
            progress: Called with (scenes done, scenes wanted) after every batch.

        Raises:
            VegaError: The disk is full; what was encoded is kept.
        """
        self.rows.fill(num_scenes, self._make, progress)
        notes = self.rows.notes(num_scenes)
        return LatentCache(
            self.rows.folder,
            self.rows.field("posteriors", num_scenes),
            np.array([note["time_ids"] for note in notes], dtype=np.int16),
            [tuple(note["captions"]) for note in notes],
        )

    def _make(self, positions: range) -> tuple[Mapping[str, np.ndarray], list[Any]]:
        scenes = [self.stream(self.seed, position) for position in positions]
        notes = [
            {"captions": list(self.captioner(scene, position, self.captions_per_scene)), "time_ids": scene.time_ids}
            for scene, position in zip(scenes, positions, strict=True)
        ]
        return {"posteriors": self._posterior(scenes).cpu().numpy()}, notes

    @torch.no_grad()
    def _posterior(self, scenes: Sequence[Scene]) -> Tensor:
        """Return fp16 `[B, 2, C, H, W]`, means and standard deviations."""
        pictures = self.renderer.render(scenes)
        # One picture's activations stay in a CPU's cache (twice the rate of whole batches), and what is stored does not
        # depend on where a build was cut. An accelerator wants them together.
        size = 1 if pictures.device.type == "cpu" else BATCH
        found = [self.vae.encode(part).latent_dist for part in pictures.split(size)]  # type: ignore[operator]
        return torch.cat([torch.stack([part.mean, part.std], dim=1) for part in found]).half()
