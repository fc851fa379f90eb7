"""The digest names what is loaded: it changes with any byte of that, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vega_diffusion.models.digest import model_digest


def touch(path: Path, data: bytes) -> None:
    """Write and make sure that the time of change differs, however coarse the file system's clock."""
    status = path.stat() if path.exists() else None
    path.write_bytes(data)
    if status is not None:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def test_it_is_a_sha256_and_does_not_depend_on_the_place(tiny_folder: Path, tmp_path: Path) -> None:
    first = model_digest(tiny_folder)
    assert len(bytes.fromhex(first)) == 32
    moved = tiny_folder.rename(tmp_path / "elsewhere")
    assert model_digest(moved) == first


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer_2/merges.txt",
        "scheduler/scheduler_config.json",
    ],
)
def test_one_changed_byte_changes_it(tiny_folder: Path, name: str) -> None:
    before = model_digest(tiny_folder)
    path = tiny_folder / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    touch(path, bytes(data))
    assert model_digest(tiny_folder) != before


@pytest.mark.parametrize("name", ["README.md", "vega.json", "unet/diffusion_pytorch_model.fp16.safetensors", "new.txt"])
def test_what_is_not_loaded_does_not_matter(tiny_folder: Path, name: str) -> None:
    before = model_digest(tiny_folder, torch.float32)
    touch(tiny_folder / name, b"something else")
    assert model_digest(tiny_folder, torch.float32) == before


def test_precisions_differ(tiny_folder: Path) -> None:
    assert model_digest(tiny_folder) == model_digest(tiny_folder, torch.float32)
    assert model_digest(tiny_folder, torch.float16) == model_digest(tiny_folder, torch.bfloat16)
    assert model_digest(tiny_folder, torch.float16) != model_digest(tiny_folder, torch.float32)
