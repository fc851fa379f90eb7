"""One hash that names the weights and settings of a model folder, for the metadata of pictures and reports."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vega_diffusion.models.layout import PIPELINE_COMPONENTS, TOKENIZER_FILES, TOKENIZERS, WEIGHT_STEMS, find_weights

if TYPE_CHECKING:
    import torch


def model_digest(folder: Path, dtype: torch.dtype | None = None) -> str:
    """Return the SHA-256 over the files that a load in this dtype reads.

    It changes with any weight, config or vocabulary, and not with the folder's name, place, card or other precisions.
    Hashes of files are remembered in memory by path, size and time of change.

    Args:
        folder: A model folder.
        dtype: As for loading: it decides between fp32 and fp16 files.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for path in _files(folder, dtype):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def text_digest(folder: Path, zeros_for_empty: bool) -> str:
    """Return the SHA-256 over what decides how prompts are read and `model_digest` does not know.

    Args:
        folder: A model folder: the settings of its tokenizers, every JSON file beside their vocabularies.
        zeros_for_empty: Whether a missing negative prompt is conditioned on zeros.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256(f"{zeros_for_empty}\n".encode())
    for path in sorted(path for name in TOKENIZERS for path in (folder / name).glob("*.json")):
        if path.name not in TOKENIZER_FILES:
            total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, remembered by path, size and time of change."""
    status = path.stat()
    return _file_digest(path.resolve(), status.st_size, status.st_mtime_ns)


def _files(folder: Path, dtype: torch.dtype | None) -> list[Path]:
    paths: list[Path] = []
    for component in sorted(PIPELINE_COMPONENTS):
        home = folder / component
        if component in WEIGHT_STEMS:
            paths += [home / "config.json", *find_weights(folder, component, dtype).paths]
        elif component == "scheduler":
            paths.append(home / "scheduler_config.json")
        else:
            paths += [home / name for name in TOKENIZER_FILES]
    return paths


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
