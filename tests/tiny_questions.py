"""Questions of random numbers for U-Nets of any shape, each row with a timestep and sizes of its own."""

from __future__ import annotations

from typing import Any

import torch

from vega_diffusion.inference.backends.protocol import Question


def random_question(
    unet: Any, rows: int = 2, height: int = 8, width: int = 8, length: int = 7, seed: int = 0
) -> Question:
    """Return a question that suits the U-Net, in its dtype."""
    generator = torch.Generator("cpu").manual_seed(seed)
    config = unet.config

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(unet.dtype)

    pooled = sizes = None
    if config.addition_embed_type == "text_time":
        width_of_sizes = 6 * config.addition_time_embed_dim
        pooled = draw(rows, config.projection_class_embeddings_input_dim - width_of_sizes)
        sizes = torch.randint(0, 128, (rows, 6), generator=generator, device="cpu").to(unet.dtype)
    return Question(
        draw(rows, config.in_channels, height, width),
        torch.randint(0, 1000, (rows,), generator=generator, device="cpu"),
        draw(rows, length, config.cross_attention_dim),
        pooled,
        sizes,
        None if config.time_cond_proj_dim is None else draw(rows, config.time_cond_proj_dim),
    )
