"""Where denoising starts: noise, a noised picture (img2img), or a noised picture with a mask (inpainting).

Draws come from one generator an image, in the order in which diffusers' SDXL pipelines draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.inference.components import Components
from vega_diffusion.inference.denoise import Kept
from vega_diffusion.inference.pictures import encode_picture, mask_to_tensor, open_picture, picture_to_tensor
from vega_diffusion.specs.request import GenerateRequest


@dataclass(frozen=True)
class Sources:
    """The pictures that a request starts from, if any."""

    init_image: Image.Image | None
    mask: Image.Image | None

    @classmethod
    def open(cls, request: GenerateRequest, pictures: Mapping[str, Image.Image]) -> Sources:
        """Find a request's pictures among `pictures`, else read them as files.

        Raises:
            MissingFile: A file is missing or not a picture.
        """
        found: list[Image.Image | None] = []
        for field in ("init_image", "mask"):
            name = getattr(request, field)
            if name is None:
                found.append(None)
            else:
                found.append(pictures[name] if name in pictures else open_picture(name, field))
        return cls(found[0], found[1])

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the initial picture in pixels."""
        return None if self.init_image is None else self.init_image.size

    @property
    def init_image_sha256(self) -> str | None:
        """Digest of the initial picture's pixels."""
        return _pixel_digest(self.init_image)

    @property
    def mask_sha256(self) -> str | None:
        """Digest of the mask's pixels."""
        return _pixel_digest(self.mask)


def _pixel_digest(picture: Image.Image | None) -> str | None:
    if picture is None:
        return None
    return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()


@dataclass(frozen=True)
class Start:
    """Latents to denoise, and what inpainting keeps."""

    latents: Tensor
    kept: Kept | None

    def in_float32(self) -> Start:
        """Return the same numbers in float32."""
        kept = self.kept and Kept(self.kept.latents.float(), self.kept.noise.float(), self.kept.mask.float())
        return Start(self.latents.float(), kept)


def remaining_timesteps(scheduler: Any, num_steps: int, strength: float | None) -> Tensor:
    """Return the timesteps to run and tell the scheduler where they begin.

    Args:
        scheduler: With its timesteps set.
        num_steps: Steps of the whole schedule.
        strength: None from pure noise; else the last `int(num_steps * strength)` steps run.
    """
    skipped = 0 if strength is None else num_steps - min(int(num_steps * strength), num_steps)
    begin = skipped * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:]


@torch.inference_mode()
def starting_latents(
    components: Components,
    request: GenerateRequest,
    sources: Sources,
    scheduler: Any,
    timesteps: Tensor,
    generators: Sequence[torch.Generator],
) -> Start:
    """Return the latents `[len(generators), C, h, w]` that the loop starts from.

    Args:
        components: The model's parts.
        request: Resolved.
        sources: Its pictures.
        scheduler: With its timesteps set.
        timesteps: Those that will run.
        generators: One an image.
    """
    assert request.width and request.height, "a resolved request"
    downscale = components.spec.autoencoder.downscale
    shape = (1, components.spec.unet.in_channels, request.height // downscale, request.width // downscale)
    if sources.init_image is None:
        noise = _noise(components, shape, generators)
        return Start(noise * scheduler.init_noise_sigma, None)

    picture = picture_to_tensor(sources.init_image, request.width, request.height)
    vae = components.vae()
    clean = torch.cat([encode_picture(vae, picture, generator, components.dtype) for generator in generators])
    noise = _noise(components, shape, generators)
    if sources.mask is None:
        return Start(_noised(scheduler, clean, noise, timesteps), None)

    # torch picks its kernels by memory layout: diffusers' inpainting works on contiguous latents, its img2img does not.
    clean = clean.contiguous()
    # diffusers encodes the masked picture even for U-Nets that do not take it; its draw moves the generator on.
    drawn_in = torch.float32 if components.spec.autoencoder.force_upcast else components.dtype
    _noise(components, shape, generators, drawn_in)
    mask = mask_to_tensor(sources.mask, request.width, request.height)
    mask = torch.nn.functional.interpolate(mask, size=shape[-2:]).to(clean).contiguous()
    latents = noise * scheduler.init_noise_sigma if request.strength == 1.0 else None
    if latents is None:
        latents = _noised(scheduler, clean, noise, timesteps)
    return Start(latents, Kept(clean, noise, mask))


def _noise(
    components: Components,
    shape: tuple[int, ...],
    generators: Sequence[torch.Generator],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw one row a generator, on the CPU so that every device starts from the same noise."""
    rows = [torch.randn(shape, generator=generator, dtype=dtype or components.dtype) for generator in generators]
    return torch.cat(rows).to(components.device)


def _noised(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return the clean latents noised to the level of the first timestep."""
    return scheduler.add_noise(clean, noise, timesteps[:1].repeat(len(clean)))
