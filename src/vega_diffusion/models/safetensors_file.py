"""Writing one safetensors file, all or nothing, so that equal tensors give equal bytes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vega_diffusion.errors import VegaError


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors under a name that appears complete or not at all; its folder is made if needed.

    Args:
        path: The file; replaced if it is there.
        tensors: On any device, contiguous or not.
        metadata: Of the header; `format` is added.

    Raises:
        VegaError: The disk is full or the place cannot be written; what was there is untouched.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        content = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(content, temporary, metadata={**metadata, "format": "pt"})
        _sort_metadata(Path(temporary))
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VegaError(f"{path}: cannot be written ({reason}); make room or choose another place") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _sort_metadata(file: Path) -> None:
    """Put a file's metadata into order in place: safetensors shuffles them."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) != length:
            raise AssertionError(f"{file}: the header changed its length")
        stream.seek(8)
        stream.write(text)
