"""Between PIL pictures and tensors: initial pictures and masks in, decoded pictures out, and the autoencoder between.

No files are written here (`metadata.py`, `cli`). The arithmetic is that of diffusers' `VaeImageProcessor`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.inference.lines import not_finite_latents
from vega_diffusion.inference.tiles import Array, decode_tiled, tile_cells


def open_picture(path: str, field: str) -> Image.Image:
    """Read a picture, turned upright, in 8-bit colours (a mask in 8-bit greys).

    Raises:
        MissingFile: The file is missing or not a picture.
        InvalidValue: It has more than 8 bits a channel, which PIL would clip.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise InvalidValue(field, path, "a picture with 8 bits a channel", "convert it first")
            return ImageOps.exif_transpose(picture).convert("L" if field == "mask" else "RGB")
    except FileNotFoundError as error:
        raise MissingFile(f"{field}: {path!r} does not exist; give the path of a PNG or JPEG file") from error
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingFile(f"{field}: {path!r} cannot be read as a picture ({reason}); give a PNG or JPEG") from error


def picture_to_tensor(picture: Image.Image, width: int, height: int) -> Tensor:
    """Return the picture resized to width x height pixels as `[1, 3, H, W]` in -1..1, float32."""
    resized = picture.resize((width, height), resample=Image.Resampling.LANCZOS).convert("RGB")
    values = numpy.asarray(resized, dtype=numpy.float32)[None] / 255.0
    # The batch axis first, then the turn: torch picks its kernels by memory layout, and diffusers' is this one.
    return 2.0 * torch.from_numpy(values).permute(0, 3, 1, 2) - 1.0


def mask_to_tensor(mask: Image.Image, width: int, height: int) -> Tensor:
    """Return the mask resized to width x height pixels as `[1, 1, H, W]` of 0 (keep) and 1 (redraw)."""
    resized = mask.resize((width, height), resample=Image.Resampling.LANCZOS).convert("L")
    values = numpy.asarray(resized, dtype=numpy.float32)[None, :, :, None] / 255.0
    return (torch.from_numpy(values).permute(0, 3, 1, 2) >= 0.5).float()


def tensor_to_picture(image: Tensor) -> Image.Image:
    """Return `[1, 3, H, W]` in about -1..1 as a PIL picture (clamped, rounded to 8 bits)."""
    unit = (image * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    return Image.fromarray((unit[0] * 255).round().astype("uint8"))


@torch.inference_mode()
def encode_picture(vae: Any, image: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw the latents of a picture from the autoencoder's posterior, scaled for the U-Net.

    Args:
        vae: A diffusers `AutoencoderKL`; with `force_upcast` it encodes in float32.
        image: `[1, 3, H, W]` in -1..1.
        generator: The image's own.
        dtype: Of the latents.
    """
    image = image.to(device=vae.device, dtype=dtype)
    if vae.config.force_upcast:
        # A copy, not `vae.float()`: another thread may be decoding with the same autoencoder.
        vae = vae if vae.dtype == torch.float32 else copy.deepcopy(vae).float()
        image = image.float()
    latents = vae.encode(image.to(vae.dtype)).latent_dist.sample(generator=generator).to(dtype)
    mean, std = _latent_statistics(vae, latents)
    if mean is not None and std is not None:
        return (latents - mean) * vae.config.scaling_factor / std
    return vae.config.scaling_factor * latents


@torch.inference_mode()
def decode_latents(vae: Any, latents: Tensor, tile_px: int | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Decode latents `[1, C, h, w]` to an image `[1, 3, H, W]` in about -1..1.

    A half-precision autoencoder that overflows is run again in float32, with a warning: never a black picture
    without a word. Of a picture in tiles, only those tiles run again.

    Args:
        vae: A diffusers `AutoencoderKL` or `AutoencoderTiny`.
        latents: As the U-Net has them.
        tile_px: Side of the tiles that a larger picture is decoded in; None decodes it at once.

    Returns:
        The image, and warnings.

    Raises:
        VegaError: The latents are not finite, or the image is not even in float32.
    """
    if not bool(torch.isfinite(latents).all()):
        wider = "fewer steps or another sampler" if latents.dtype == torch.float32 else "--dtype bfloat16 or float32"
        raise VegaError(not_finite_latents(_dtype_name(latents), wider))
    decoder = _GuardedDecoder(vae)
    if tile_px is None:
        image = decoder(latents)
    else:
        cells = tile_cells(tile_px, downscale(vae))

        def decoded(part: Array) -> Array:
            return decoder(torch.from_numpy(part).to(latents)).float().cpu().numpy()

        image = torch.from_numpy(decode_tiled(decoded, latents.float().cpu().numpy(), *cells)).to(latents.device)
    if decoder.wide is None:
        return image, ()
    return image, (f"the autoencoder overflowed in {_dtype_name(vae)}; decoded again in float32",)


class _GuardedDecoder:
    """Decodes, and where the numbers overflow decodes again in float32; `wide` is the copy that does, once made."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.wide = vae, None

    def __call__(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        image = vae.decode(unscaled(vae, latents).to(vae.dtype), return_dict=False)[0]
        if bool(torch.isfinite(image).all()):
            return image
        if vae.dtype != torch.float32:
            # A copy, not `vae.float()`: another thread may be decoding with the same autoencoder.
            self.wide = wide = copy.deepcopy(vae).float() if self.wide is None else self.wide
            image = wide.decode(unscaled(wide, latents.float()), return_dict=False)[0]
            if bool(torch.isfinite(image).all()):
                return image
        raise VegaError(
            "image: the autoencoder gave values that are not finite; its weights are damaged: fetch them again"
        )


def downscale(vae: Any) -> int:
    """Return how many pixels of a side one latent cell of an autoencoder stands for."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """Return the U-Net's latents in the autoencoder's own scale."""
    mean, std = _latent_statistics(vae, latents)
    if mean is not None and std is not None:
        return latents * std / vae.config.scaling_factor + mean
    return latents / vae.config.scaling_factor


def _latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return mean and standard deviation a channel where the config has them (fine-tuned SDXL models)."""
    found = []
    for name in ("latents_mean", "latents_std"):
        values = getattr(vae.config, name, None)
        found.append(None if values is None else torch.tensor(values).view(1, -1, 1, 1).to(like))
    return found[0], found[1]


def _dtype_name(thing: Any) -> str:
    return str(thing.dtype).removeprefix("torch.")
