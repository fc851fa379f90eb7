"""Where a tiny autoencoder lies: in a folder of its own such as `taesdxl`, in a model's folder, or on the Hub.

Reading it is `checkpoint`'s matter, describing it `detect`'s.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from vega_diffusion.errors import MissingFile, Unavailable
from vega_diffusion.models.find import EMBEDDED, TEACHERS, find_folder, is_hub_id
from vega_diffusion.models.layout import VAE_TINY, read_json

_FILES = ["config.json", f"{VAE_TINY}/config.json", "*diffusion_pytorch_model*.safetensors"]


def tiny_home(folder: Path) -> Path | None:
    """Return the folder that holds a tiny autoencoder's config: the given one itself, or its `vae_tiny`; else None."""
    inside = folder / VAE_TINY
    if (inside / "config.json").is_file():
        return inside
    own = folder / "config.json"
    return folder if own.is_file() and read_json(own).get("_class_name") == "AutoencoderTiny" else None


def take_tiny_along(source: Path, target: Path) -> None:
    """Copy the tiny autoencoder of a model folder, if it has one, to another model with the same full one."""
    if (source / VAE_TINY / "config.json").is_file():
        shutil.copytree(source / VAE_TINY, target / VAE_TINY)


def find_tiny(reference: str) -> Path:
    """Return the folder that holds a tiny autoencoder's config.

    Args:
        reference: A folder of its own (`taesdxl`), a model folder or known model that has a `vae_tiny`, or a Hub id
            such as `madebyollin/taesdxl`.

    Raises:
        MissingFile: There is none.
        Unavailable: A Hub id that is neither reachable nor cached.
    """
    folder = Path(reference).expanduser()
    if reference in (*EMBEDDED, *TEACHERS):
        folder = find_folder(reference)
    elif not folder.exists() and is_hub_id(reference):
        folder = _fetch(reference)
    home = tiny_home(folder)
    if home is None:
        raise MissingFile(
            f"vae_tiny: {reference!r} holds no tiny autoencoder; allowed: a folder of an AutoencoderTiny such as "
            f"taesdxl, or a model folder with {VAE_TINY}/; give one"
        )
    return home


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_FILES, etag_timeout=10))
    except Exception as error:  # whichever HTTP library says so
        raise Unavailable(
            f"vae_tiny: {hub_id!r} is not in the Hub's cache and cannot be fetched; connect to the network, check the "
            "spelling, or use a local folder"
        ) from error
