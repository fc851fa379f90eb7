"""What a model folder and a profile come to, kept so that the next command need not read the folder with torch.

A bundle holds names and numbers, two tokenizers and, beside it, one table a sampler; the networks themselves are the
entries of `backends/store.py`. It belongs to the files of one folder as they lie there: whatever touches one of them
makes it worthless, and the next command takes the long way and leaves a new one. Making them is `bundles.py`'s matter.
"""

from __future__ import annotations

import glob
import hashlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from vega_diffusion.inference.backends.store import Store
from vega_diffusion.inference.lean.sampler_table import SamplerTable
from vega_diffusion.inference.lean.text import LeanTokenizer, TokenizerSpec
from vega_diffusion.models.layout import SCHEDULER_CONFIG
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.profile import Decoder

FORMAT = 1
BUNDLE_FORMAT = 2  # 2: with a digest of how text is read
BUNDLE = "bundle.json"
TABLE = "table.npz"
_MADE_BY = ("vega-diffusion", "openvino", "torch", "diffusers", "transformers", "tokenizers")


class Bundle(Spec):
    """All of a model that a command needs beside its networks.

    Args:
        spec: Architecture and generation defaults.
        model_digest: Names the weights.
        tiny_digest: Names those of the tiny autoencoder, where there is one.
        text_digest: Names how text is read, for records.
        dtype: In which torch would draw the first noise.
        scaling_factors: What the U-Net's latents are divided by for each autoencoder.
        tokenizers: First and second.
        unet_parameters: How many the U-Net has.
        default_threads: How many threads torch takes on this machine when nobody says.
    """

    spec: ModelSpec
    model_digest: str
    tiny_digest: str | None
    text_digest: str
    dtype: Literal["float32", "bfloat16"]
    scaling_factors: dict[Decoder, float]
    tokenizers: tuple[TokenizerSpec, TokenizerSpec]
    unet_parameters: int
    default_threads: int


def bundle_identity(folder: Path) -> dict[str, Any]:
    """Return what a bundle depends on: files by place, size and times, this machine's accelerators, versions."""
    folder = folder.resolve()
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        seal = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        files.append([path.relative_to(folder).as_posix(), *seal])
    return {
        "what": "bundle",
        "format": BUNDLE_FORMAT,
        "folder": str(folder),
        "files": files,
        "accelerators": sorted(glob.glob("/dev/nvidia[0-9]*") + glob.glob("/dev/dri/render*")),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": {name: version(name) for name in _MADE_BY},
    }


def table_identity(folder: Path, sampler: str, num_steps: int) -> dict[str, Any]:
    """Return what a sampler's table depends on."""
    config = hashlib.sha256((folder / SCHEDULER_CONFIG).read_bytes()).hexdigest()
    return {
        "what": "sampler",
        "format": FORMAT,
        "config": config,
        "sampler": sampler,
        "num_steps": num_steps,
        "diffusers": version("diffusers"),
    }


def find_bundle(store: Store, folder: Path) -> tuple[Bundle, list[LeanTokenizer]] | None:
    """Return a folder's bundle and its tokenizers, or None."""
    home = store.find(bundle_identity(folder))
    if home is None:
        return None
    bundle = Bundle.from_json((home / BUNDLE).read_text(encoding="utf-8"))
    return bundle, [LeanTokenizer(home / tokenizer_file(index), one) for index, one in enumerate(bundle.tokenizers)]


def find_table(store: Store, folder: Path, sampler: str, num_steps: int) -> SamplerTable | None:
    """Return a sampler's table, or None."""
    home = store.find(table_identity(folder, sampler, num_steps))
    return None if home is None else SamplerTable.load(home / TABLE)


def tokenizer_file(index: int) -> str:
    """Return the name of a tokenizer's file in a bundle."""
    return f"tokenizer-{index + 1}.json"
