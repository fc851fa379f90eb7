"""Captioned latents on disk: scenes drawn and encoded once, then read by memory map in every step.

What is stored is each picture's posterior (mean and standard deviation, fp16), so that a step can draw fresh latents;
its captions as text, so that new text encoders cost nothing; its size and crop numbers. A cache's folder is named by a
hash of all that decides its content but its length, so changing a learning rate recomputes nothing and asking for more
scenes only adds them. A build that was killed goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vega_diffusion.data.scene_stream import SceneStream
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import Scene
from vega_diffusion.errors import VegaError

CHUNK = 64
TIME_IDS = 6

Captioner = Callable[[Scene, int, int], Sequence[str]]
"""(scene, its position, how many) -> that many phrasings of its caption; a pure function."""


@dataclass(frozen=True)
class LatentCache:
    """An open cache.

    Args:
        folder: Where it lies.
        posteriors: fp16 `[N, 2, C, H, W]`, mean and standard deviation, a read-only memory map.
        time_ids: int16 `[N, 6]`, a read-only memory map.
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
        text = json.dumps(identity, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        self.folder = root / self.digest
        self.identity, self.renderer, self.stream, self.captioner = text, renderer, stream, captioner
        self.vae, self.seed, self.captions_per_scene = vae, seed, captions_per_scene

    def open(self, num_scenes: int, progress: Callable[[int, int], object] = lambda done, total: None) -> LatentCache:
        """Return the first `num_scenes` scenes, encoding those that are not there yet.

        Args:
            num_scenes: Length of the returned cache.
            progress: Called with (scenes done, scenes wanted) after every chunk.

        Raises:
            VegaError: The disk is full; what was encoded is kept.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shape = tuple(self._posterior([self.stream(self.seed, 0)]).shape[1:])
            with open(self.folder / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of a run wait here, then find all of it
                self._fill(num_scenes, shape, progress)
        except OSError as error:
            raise VegaError(
                f"{self.folder}: cannot be written ({error.strerror}); free disk space and run again, "
                "what is encoded is kept"
            ) from error
        return self._opened(num_scenes, shape)

    def _fill(self, num_scenes: int, shape: tuple[int, ...], progress: Callable[[int, int], object]) -> None:
        (self.folder / "identity.json").write_text(self.identity, encoding="utf-8")
        done = self._complete(2 * int(np.prod(shape)))
        while done < num_scenes:
            count = min(CHUNK, num_scenes - done)
            self._append(range(done, done + count))
            done += count
            progress(done, num_scenes)

    def _append(self, positions: range) -> None:
        scenes = [self.stream(self.seed, position) for position in positions]
        posteriors = self._posterior(scenes).cpu().numpy()
        time_ids = np.array([scene.time_ids for scene in scenes], dtype=np.int16)
        captions = [
            json.dumps(list(self.captioner(scene, position, self.captions_per_scene)))
            for scene, position in zip(scenes, positions, strict=True)
        ]
        # The numbers of a scene are written last: what they cover is complete.
        self._write("posteriors.f16", posteriors.tobytes())
        self._write("captions.jsonl", "".join(line + "\n" for line in captions).encode())
        self._write("time_ids.i16", time_ids.tobytes())

    def _write(self, name: str, data: bytes) -> None:
        with open(self.folder / name, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @torch.no_grad()
    def _posterior(self, scenes: Sequence[Scene]) -> Tensor:
        """Return fp16 `[B, 2, C, H, W]`, means and standard deviations."""
        pictures = self.renderer.render(scenes)
        # One picture's activations stay in a CPU's cache (twice the rate of whole chunks), and what is stored does not
        # depend on where a build was cut. An accelerator wants them together.
        size = 1 if pictures.device.type == "cpu" else CHUNK
        found = [self.vae.encode(part).latent_dist for part in pictures.split(size)]  # type: ignore[operator]
        return torch.cat([torch.stack([part.mean, part.std], dim=1) for part in found]).half()

    def _complete(self, record: int) -> int:
        """Cut what a killed build left unfinished; return the number of complete scenes."""
        numbers = self.folder / "time_ids.i16"
        done = numbers.stat().st_size // (2 * TIME_IDS) if numbers.exists() else 0
        lines = self.folder / "captions.jsonl"
        if lines.exists():
            kept = lines.read_bytes().split(b"\n")[:done]
            length = sum(len(line) + 1 for line in kept)
        else:
            length = 0
        for name, size in (("posteriors.f16", done * record), ("captions.jsonl", length), (numbers.name, done * 12)):
            with open(self.folder / name, "ab") as file:
                file.truncate(size)
        return done

    def _opened(self, count: int, shape: tuple[int, ...]) -> LatentCache:
        posteriors = np.memmap(self.folder / "posteriors.f16", np.float16, "r", shape=(count, *shape))
        time_ids = np.memmap(self.folder / "time_ids.i16", np.int16, "r", shape=(count, TIME_IDS))
        with open(self.folder / "captions.jsonl", encoding="utf-8") as file:
            captions = [tuple(json.loads(line)) for line, _ in zip(file, range(count), strict=False)]
        return LatentCache(self.folder, posteriors, time_ids, captions)
