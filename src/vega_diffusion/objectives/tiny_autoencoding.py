"""Tiny autoencoding: a tiny autoencoder learns to read and write the latents of a full one, which stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.autoencoding import edge_error, per_sample_mean, psnr
from vega_diffusion.objectives.protocol import Loss
from vega_diffusion.specs.objective import TinyAutoencodingSpec


class TinyAutoencoding:
    """Distillation of a full autoencoder (`frozen["vae"]`) into a student with a `vae_tiny` (an `AutoencoderTiny`).

    The decoder gets the full encoder's mean latents, scaled as the U-Net sees them, and shall give the picture that the
    full decoder makes of them and, less strictly, the one that was encoded. The encoder shall give those latents.
    Batches hold `pixels`, float32 `[B, 3, H, W]` in [-1, 1].

    Args:
        spec: Weights of the parts.
        frozen: `vae`, an `AutoencoderKL` whose config has its scaling factor.

    Source: Hinton et al. 2015 (arXiv 1503.02531) for learning from another network's answers; the layout is TAESD's.
    """

    def __init__(self, spec: TinyAutoencodingSpec, frozen: dict[str, nn.Module]) -> None:
        self.spec, self.vae = spec, frozen["vae"]

    def to(self, device: torch.device) -> None:
        """Move the full autoencoder."""
        self.vae.to(device)

    def __call__(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Loss:
        """Return the loss; parts: `latent` (squared error), `psnr` to the full decoder, `psnr_picture` (dB)."""
        pixels, spec = batch.tensors["pixels"], self.spec
        latents, shown = full_answers(self.vae, pixels)
        tiny = student.get_submodule("vae_tiny")
        decoded = tiny.get_submodule("decoder")(latents).float()
        encoded = tiny.get_submodule("encoder")(pixels).float()
        latent = per_sample_mean((encoded - latents).square())
        total = (
            spec.teacher_weight * self._picture_error(decoded - shown)
            + spec.picture_weight * self._picture_error(decoded - pixels)
            + spec.latent_weight * latent
        )
        to_teacher, to_picture = (per_sample_mean((decoded - goal).square()) for goal in (shown, pixels))
        parts = {"latent": latent, "psnr": psnr(to_teacher), "psnr_picture": psnr(to_picture)}
        return Loss.from_samples(total, parts)

    def _picture_error(self, error: Tensor) -> Tensor:
        """Return l1, l2 and edge error of pictures, `[B, 3, H, W]` -> `[B]`, weighted and summed."""
        spec = self.spec
        l1, l2 = per_sample_mean(error.abs()), per_sample_mean(error.square())
        return spec.l1_weight * l1 + spec.l2_weight * l2 + spec.edge_weight * edge_error(error)


@torch.no_grad()
def full_answers(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a full autoencoder makes of pictures `[B, 3, H, W]`.

    Returns:
        The mean latents as the U-Net sees them, float32 `[B, C, H/f, W/f]`, and the pictures decoded from them,
        float32 `[B, 3, H, W]`, clamped to [-1, 1] as a file would: nothing is learned from what no file shows.
    """
    mean = vae.encode(pixels).latent_dist.mode()
    shown = vae.decode(mean).sample.float().clamp(-1, 1)
    return mean.float() * vae.config["scaling_factor"], shown
