"""Autoencoding: pixels -> latent posterior -> pixels. No adversary and no perceptual network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.protocol import Loss
from vega_diffusion.specs.objective import AutoencodingSpec

LOGVAR_RANGE = (-30.0, 20.0)  # as AutoencoderKL clamps it


class Autoencoding:
    """Weighted L1, L2, edge and KL loss of a student with a `vae` (an `AutoencoderKL`).

    Batches hold `pixels`, float32 `[B, 3, H, W]` in [-1, 1].

    Source: Rombach et al. 2022, section 3.1 and appendix G (arXiv 2112.10752), without the adversarial part.
    """

    def __init__(self, spec: AutoencodingSpec) -> None:
        self.spec = spec

    def to(self, device: torch.device) -> None:
        """There is nothing frozen to move."""

    def __call__(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Loss:
        """Return the loss and the parts l1, edge, kl and psnr (dB, of the sampled reconstruction)."""
        pixels, spec = batch.tensors["pixels"], self.spec
        reconstruction, kl = reconstruct(student.get_submodule("vae"), pixels, rng)
        error = reconstruction.float() - pixels
        l1, l2 = per_sample_mean(error.abs()), per_sample_mean(error.square())
        edge = edge_error(error)
        total = spec.l1_weight * l1 + spec.l2_weight * l2 + spec.edge_weight * edge + spec.kl_weight * kl
        return Loss.from_samples(total, {"l1": l1, "edge": edge, "kl": kl, "psnr": psnr(l2)})


CONV_GAIN = 1.7
BRANCH_GAIN = 0.25


@torch.no_grad()
def start_fresh(vae: nn.Module, logvar: float) -> None:
    """Rescale fresh weights so that the first signal is neither lost on its way nor drowned in noise.

    The default initialisation shrinks a signal to about 1/sqrt(3) in every convolution, and the path from latents to
    pixels has many without a norm; scaled by about sqrt(3) they keep it. Residual branches start small, so that the
    network begins near a plain blur and sharpens from there. The posterior starts narrow everywhere: log variance near
    `logvar`, hardly moved by the input. At 240 steps of 8 pictures this gave 16.4 dB where the defaults gave 13.2
    (`docs/log.md`).

    Args:
        vae: An `AutoencoderKL` with fresh weights; changed in place.
        logvar: Log variance of the posterior at the start.
    """
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight *= CONV_GAIN
            if name.endswith((".conv2", ".to_out.0")):
                module.weight *= BRANCH_GAIN
    layer = vae.get_submodule("quant_conv")
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    half = layer.out_channels // 2
    layer.weight[half:] *= 0.01
    layer.bias[half:] = logvar


@torch.no_grad()
def measure_scaling(vae: nn.Module, pixels: Tensor) -> float:
    """Return 1 / standard deviation of the latents of pictures `[B, 3, H, W]`: the model's `scaling_factor`.

    Source: Rombach et al. 2022, appendix G (arXiv 2112.10752).
    """
    posterior = vae.encode(pixels).latent_dist  # type: ignore[operator]
    variance = posterior.mean.float().var() + posterior.std.float().square().mean()
    return float(variance.rsqrt())


def reconstruct(vae: nn.Module, pixels: Tensor, rng: PositionRng) -> tuple[Tensor, Tensor]:
    """Return sampled reconstructions `[B, 3, H, W]` and the posterior's KL divergence per latent number, `[B]`."""
    moments = vae.get_submodule("encoder")(pixels)
    moments = _convolved(vae, "quant_conv", moments)
    mean, logvar = moments.float().chunk(2, dim=1)
    logvar = logvar.clamp(*LOGVAR_RANGE)
    latents = mean + (0.5 * logvar).exp() * rng.normal(mean.shape[1:], "posterior")
    kl = 0.5 * per_sample_mean(mean.square() + logvar.exp() - 1 - logvar)
    return vae.get_submodule("decoder")(_convolved(vae, "post_quant_conv", latents)), kl


def _convolved(vae: nn.Module, name: str, x: Tensor) -> Tensor:
    layer = getattr(vae, name, None)
    return x if layer is None else layer(x)


def per_sample_mean(values: Tensor) -> Tensor:
    """Mean over everything but the batch, `[B, ...]` -> `[B]`."""
    return values.flatten(1).mean(dim=1)


def edge_error(error: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels' errors, `[B, C, H, W]` -> `[B]`.

    It is the L1 error of the picture's gradient, as the gradient is linear.
    """
    across = per_sample_mean((error[..., :, 1:] - error[..., :, :-1]).abs())
    down = per_sample_mean((error[..., 1:, :] - error[..., :-1, :]).abs())
    return across + down


def psnr(mean_squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] (peak to peak 2)."""
    return 10 * torch.log10(4 / mean_squared_error.clamp(min=1e-12))
