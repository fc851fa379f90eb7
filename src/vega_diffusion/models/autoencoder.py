"""Autoencoders from specs. No training, no files."""

from __future__ import annotations

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from vega_diffusion.specs.architecture import AutoencoderSpec


def build_autoencoder(spec: AutoencoderSpec) -> AutoencoderKL:
    """Build the autoencoder with fresh weights, on the device and in the dtype that are current.

    Args:
        spec: The architecture.

    Returns:
        A diffusers `AutoencoderKL`: pictures `[B, 3, H, W]` in -1..1 to latents `[B, C, H/f, W/f]`, f = `downscale`.
    """
    return AutoencoderKL(**spec.to_config())
