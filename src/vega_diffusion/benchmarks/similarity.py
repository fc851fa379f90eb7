"""How alike two pictures are, by structural similarity; PSNR is `autoencoder.psnr_db`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 11
SIGMA = 1.5
# The constants of the paper for values that span 2, as pictures in -1..1 do.
C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Return the mean structural similarity of each picture, 1 where they are equal.

    Means, variances and covariance under a Gaussian window of 11 px, sigma 1.5, each colour for itself, where the whole
    window lies inside.

    Args:
        images: `[B, 3, H, W]`, clamped to -1..1 as a picture file would.
        references: The same shape, in -1..1.

    Returns:
        `[B]`.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III.
    """
    import torch
    from torch.nn.functional import conv2d

    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    bell = (-at.square() / (2 * SIGMA**2)).exp()
    window = (bell[:, None] * bell[None, :] / bell.sum() ** 2)[None, None]

    def averaged(values: Tensor) -> Tensor:
        return conv2d(values.flatten(0, 1)[:, None], window).unflatten(0, values.shape[:2])[:, :, 0]

    x, y = images.double().clamp(-1, 1), references.double()
    mean_x, mean_y = averaged(x), averaged(y)
    variance_x, variance_y = averaged(x * x) - mean_x**2, averaged(y * y) - mean_y**2
    covariance = averaged(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return (luminance * structure).mean(dim=(1, 2, 3))
