"""The smallest U-Net of SDXL's kind, for tests in which converting or compiling is what takes the time."""

from __future__ import annotations

from typing import Any

import torch

from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec

SMALLEST = UNetSpec(
    sample_size=8,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    mid_block_type=None,
    layers_per_block=1,
    transformer_layers_per_block=1,
    attention_head_dim=(1, 2),
    norm_num_groups=4,
    cross_attention_dim=16,
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=64,
)
# 4 calibration questions and probes on 2 of them; half of the work may leave int8.
TINY_RULE = QuantisationRule(num_samples=4, num_probes=2, max_error=0.02, max_kept_work=0.5)


def smallest_unet(seed: int = 0, **changes: Any) -> Any:
    """Return a U-Net with random weights in float32."""
    torch.manual_seed(seed)
    return build_unet(SMALLEST.model_copy(update=changes)).eval().requires_grad_(False)
