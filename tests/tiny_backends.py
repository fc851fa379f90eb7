"""The smallest U-Net of SDXL's kind, for tests in which converting or compiling is what takes the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tiny_questions import random_question
from vega_diffusion.inference.backends.faults import Route
from vega_diffusion.inference.backends.open import Opening, Weights, open_denoiser
from vega_diffusion.inference.backends.protocol import Denoiser, Precision, Question
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


KEPT = Weights("smallest", None)
"""The smallest U-Net as it lies in a home; nothing of it in torch."""


def ask(unet: Any, rows: int = 2, height: int = 8, width: int = 8, seed: int = 9) -> Question:
    return random_question(unet, rows, height, width, length=77, seed=seed)


def reopen(home: Path, precision: Precision, **changes: Any) -> Denoiser:
    """Open what is kept, without torch weights."""
    opening = replace(Opening(home=home, rule=TINY_RULE, keep_blobs=False), **changes)
    return open_denoiser(Route("openvino", precision), KEPT, opening)
