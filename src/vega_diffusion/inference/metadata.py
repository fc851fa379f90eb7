"""What a PNG says about itself: the common `parameters` text, and our own record from which it can be made again.

Reading and writing of that text and the file; what to do with a record is the engine's and the command's matter.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from pydantic import ValidationError, model_validator

from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.specs.base import Spec, as_vega_error
from vega_diffusion.specs.lora import WeightedLora
from vega_diffusion.specs.profile import Decoder
from vega_diffusion.specs.request import GenerateRequest

RECORD_KEY = "vega"
PARAMETERS_KEY = "parameters"


class PictureRecord(Spec):
    """Everything that made one picture.

    Attributes:
        version: Of this format.
        request: Resolved, for this one image (`num_images` 1, `seed` its own).
        model: The name, folder or Hub id it was asked for by.
        model_digest: Of the weights and configs, hexadecimal.
        dtype: As "float32".
        device: As "cpu" or "cuda".
        software: Versions: vega-diffusion, torch, diffusers.
        init_image_sha256: Of the initial picture's file.
        mask_sha256: Of the mask's file.
        loras_sha256: Of the LoRA files, in the order of `request.loras`.
        backend: What ran the U-Net.
        precision: In which numbers it ran; None in records of before there was a choice.
        decoder: Which autoencoder decoded, whatever was asked for.
        tiny_sha256: Of the tiny autoencoder, where that decoded.
        text_sha256: Of the tokenizers' settings and of the rule for missing negative prompts; None in older records,
            which do not tell of tiles either.
        tile_px: Side of the tiles, where it was decoded in tiles.
    """

    version: int = 1
    request: GenerateRequest
    model: str
    model_digest: str
    dtype: str
    device: str
    software: dict[str, str]
    init_image_sha256: str | None = None
    mask_sha256: str | None = None
    loras_sha256: tuple[str, ...] = ()
    backend: str = "torch"
    precision: str | None = None
    decoder: Decoder = "full"
    tiny_sha256: str | None = None
    text_sha256: str | None = None
    tile_px: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_was_kept_before(cls, data: Any) -> Any:
        """Records of before guidance could be kept say nothing of it: today's profile must not decide for them."""
        request = data.get("request") if isinstance(data, dict) else None
        if isinstance(request, dict) and request.get("guidance_interval") and "guidance_kept" not in request:
            return {**data, "request": {**request, "guidance_kept": 0.0}}
        return data


def parameters_text(record: PictureRecord, sampler_name: str) -> str:
    """Return the text that other programs read: prompt, negative prompt, one line of settings.

    Args:
        record: What made the picture.
        sampler_name: The sampler as other programs call it ("Euler a").
    """
    request = record.request
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    settings = {
        "Steps": request.num_steps,
        "Sampler": sampler_name,
        "CFG scale": request.guidance_scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": record.model_digest[:10],
        "Model": Path(record.model).name.replace(",", " "),
    }
    if request.init_image is not None:
        settings["Denoising strength"] = request.strength
    if request.loras:
        uses = map(WeightedLora.parse, request.loras)
        settings["LoRAs"] = " + ".join(f"{Path(use.file).name.replace(',', ' ')}@{use.weight:g}" for use in uses)
    settings["Version"] = f"vega-diffusion {record.software['vega-diffusion']}"
    lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
    return "\n".join(lines)


def write_png(image: Image.Image, path: Path, record: PictureRecord, sampler_name: str) -> None:
    """Write the picture with its record; `path` holds the whole file or what was there before.

    Raises:
        VegaError: The file cannot be written (full disk, no permission).
    """
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS_KEY, parameters_text(record, sampler_name))
    info.add_text(RECORD_KEY, record.to_json())
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            image.save(file, format="PNG", pnginfo=info)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise VegaError(
            f"output: {str(path)!r} cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_record(path: Path) -> PictureRecord:
    """Return what made a picture of ours.

    Raises:
        MissingFile: The file cannot be read as a picture.
        VegaError: It has no record of ours, or a damaged one.
    """
    try:
        with Image.open(path) as image:
            image.load()
            text: Any = dict(getattr(image, "text", {})).get(RECORD_KEY)
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a readable picture"
        raise MissingFile(f"from: {str(path)!r} cannot be read ({reason}); give a PNG made by vega generate") from error
    if text is None:
        raise VegaError(
            f"from: {str(path)!r} holds no vega record; allowed: a PNG made by vega generate; give the prompt"
        )
    try:
        version = json.loads(text).get("version")
        if version != 1:
            raise VegaError(
                f"from: {str(path)!r} has a record of version {version!r}; allowed: 1; update vega-diffusion"
            )
        return PictureRecord.model_validate_json(text)
    except ValidationError as error:
        raise VegaError(f"from: {str(path)!r} has a damaged record ({as_vega_error(error)})") from error
    except (json.JSONDecodeError, AttributeError) as error:
        raise VegaError(f"from: {str(path)!r} has a damaged record (not a JSON object); give the prompt") from error
