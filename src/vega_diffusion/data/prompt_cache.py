"""Encoded captions on disk: what frozen text encoders say of every caption of a latent cache, read by memory map.

Encoding 77 tokens costs a quarter of a mini U-Net's training step; frozen encoders always say the same. The folder is
named by a hash of captions, tokenizers and encoder weights; a build that was killed goes on where it stopped.
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
from torch import Tensor

from vega_diffusion.errors import VegaError

CHUNK = 64

EncodePrompts = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions -> `prompt_embeds [B, L, D]` and `pooled_prompt_embeds [B, P]`."""


@dataclass(frozen=True)
class PromptCache:
    """An open cache: row `scene * captions_per_scene + caption`.

    Args:
        prompt_embeds: fp16 `[N, L, D]`, a read-only memory map.
        pooled_prompt_embeds: fp16 `[N, P]`, a read-only memory map.
        empty: The same two for the empty caption, `[L, D]` and `[P]`.
    """

    prompt_embeds: np.ndarray
    pooled_prompt_embeds: np.ndarray
    empty: tuple[np.ndarray, np.ndarray]

    def take(self, rows: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        """Return fp32 embeddings of these rows; None stands for the empty caption."""
        tokens = [self.empty[0] if row is None else self.prompt_embeds[row] for row in rows]
        pooled = [self.empty[1] if row is None else self.pooled_prompt_embeds[row] for row in rows]
        return torch.from_numpy(np.stack(tokens)).float(), torch.from_numpy(np.stack(pooled)).float()


def open_prompts(
    root: Path,
    identity: dict[str, str | int],
    captions: Sequence[str],
    encode: EncodePrompts,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> PromptCache:
    """Return the encoded captions, encoding those that are not there yet.

    Args:
        root: Folder of all caches.
        identity: What decides the content: captions, tokenizers, weights of the encoders.
        captions: All captions, in row order.
        encode: The frozen encoders.
        progress: Called with (captions done, captions wanted) after every chunk.

    Raises:
        VegaError: The disk is full; what was encoded is kept.
    """
    text = json.dumps(identity, sort_keys=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:20]
    empty = tuple(part[0].half().numpy() for part in encode([""]))
    assert len(empty) == 2
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "prompt_embeds.f16", folder / "pooled.f16"]
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of a run wait here, then find all of it
            (folder / "identity.json").write_text(text, encoding="utf-8")
            done = _complete(files, [part.nbytes for part in empty])
            while done < len(captions):
                chunk = captions[done : done + CHUNK]
                for file, part in zip(files, encode(chunk), strict=True):
                    _append(file, part.half().numpy().tobytes())
                done += len(chunk)
                progress(done, len(captions))
    except OSError as error:
        raise VegaError(
            f"{folder}: cannot be written ({error.strerror}); free disk space and run again, what is encoded is kept"
        ) from error
    maps = [
        np.memmap(file, np.float16, "r", shape=(len(captions), *part.shape))
        for file, part in zip(files, empty, strict=True)
    ]
    return PromptCache(maps[0], maps[1], empty)


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _complete(files: list[Path], record_bytes: list[int]) -> int:
    """Cut what a killed build left unfinished; return the number of rows that all files hold."""
    sizes = [file.stat().st_size if file.exists() else 0 for file in files]
    done = min(size // record for size, record in zip(sizes, record_bytes, strict=True))
    for file, record in zip(files, record_bytes, strict=True):
        with open(file, "ab") as opened:
            opened.truncate(done * record)
    return done
