"""The noise schedule: how much signal and how much noise a training sample has at each timestep.

What lives here: alphas_cumprod tables, the forward process, snr. What does not: samplers (diffusers' schedulers are
used for those) and what the network predicts (parameterisation.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete variance-preserving schedule, x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise.

    Args:
        alphas_cumprod: Float32 `[T]`, falling, in [0, 1]; exactly 0 only at the last timestep (zero terminal SNR).

    Source: Ho et al. 2020, equation 4 (arXiv 2006.11239).
    """

    alphas_cumprod: Tensor

    @property
    def num_timesteps(self) -> int:
        """Number of training timesteps T; valid t are 0..T-1."""
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """Return the schedule with its table on `device`."""
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Forward process, x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise.

        Args:
            x0: Clean latents `[B, ...]`.
            noise: Standard normal, the shape of `x0`.
            timesteps: Int64 `[B]`, 0..T-1.
        """
        signal, sigma = self.coefficients(timesteps, like=x0)
        return signal * x0 + sigma * noise

    def coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(a_t) and sqrt(1 - a_t), shaped to broadcast over `like` and in its dtype."""
        alphas = self.alphas_cumprod[timesteps].view(-1, *([1] * (like.ndim - 1)))
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio a_t / (1 - a_t), float32 `[B]`; 0 at a zero-terminal-SNR end."""
        alphas = self.alphas_cumprod[timesteps]
        return alphas / (1 - alphas)


def scaled_linear(
    num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Return SDXL's schedule: betas whose square roots are evenly spaced.

    Args:
        num_timesteps: T.
        beta_start: First beta, > 0.
        beta_end: Last beta, < 1.
        zero_terminal_snr: Shift and scale sqrt(a_t) so that the last timestep is pure noise.

    Source: Rombach et al. 2022 (arXiv 2112.10752), the released code's "scaled_linear".
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float32) ** 2
    return from_betas(betas, zero_terminal_snr)


def linear(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """Return evenly spaced betas; arguments as for `scaled_linear`.

    Source: Ho et al. 2020, section 4 (arXiv 2006.11239).
    """
    return from_betas(torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float32), zero_terminal_snr)


def squared_cosine(num_timesteps: int = 1000, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Return betas that follow a_t = cos((t/T + 0.008) / 1.008 * pi / 2)^2, each at most 0.999.

    Source: Nichol and Dhariwal 2021, equation 17 (arXiv 2102.09672).
    """
    ticks = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alphas = torch.cos((ticks + 0.008) / 1.008 * torch.pi / 2) ** 2
    return from_betas((1 - alphas[1:] / alphas[:-1]).clamp(max=0.999).float(), zero_terminal_snr)


def from_betas(betas: Tensor, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Return the schedule of betas `[T]`, a_t = product of (1 - beta) up to t.

    Source: zero terminal SNR: Lin et al. 2023, algorithm 1 (arXiv 2305.08891).
    """
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    if zero_terminal_snr:
        roots = alphas_cumprod.sqrt()
        roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
        alphas_cumprod = roots**2
    return NoiseSchedule(alphas_cumprod)
