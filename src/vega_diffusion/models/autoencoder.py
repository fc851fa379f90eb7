"""Autoencoders from specs. No training, no files."""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from vega_diffusion.specs.architecture import AutoencoderSpec
from vega_diffusion.specs.tiny_autoencoder import TinyAutoencoderSpec


def build_autoencoder(spec: AutoencoderSpec) -> AutoencoderKL:
    """Build the autoencoder with fresh weights, on the device and in the dtype that are current.

    Args:
        spec: The architecture.

    Returns:
        A diffusers `AutoencoderKL`: pictures `[B, 3, H, W]` in -1..1 to latents `[B, C, H/f, W/f]`, f = `downscale`.
    """
    return AutoencoderKL(**spec.to_config())


def build_tiny_autoencoder(spec: TinyAutoencoderSpec) -> AutoencoderTiny:
    """Build a tiny autoencoder with fresh weights, on the device and in the dtype that are current.

    Args:
        spec: The architecture.

    Returns:
        A diffusers `AutoencoderTiny`: `decode` turns latents as the U-Net has them, `[B, C, H/f, W/f]`, squeezed into
        -3..3 by 3 tanh(x / 3), into pictures `[B, 3, H, W]` in about -1..1; `encode` goes the other way.
    """
    build: Any = AutoencoderTiny  # diffusers types tuples of any length as tuples of one
    return build(**spec.to_config())
