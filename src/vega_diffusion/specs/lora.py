"""Low-rank adapters as data: rank, scale and where they sit. The adapters themselves are in `models/lora.py`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from vega_diffusion.specs.optimizer import StrictSpec

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls a file of adapters."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


class LoraSpec(StrictSpec):
    """LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen weight W learns B A scale, with scale = alpha / rank.

    Args:
        rank: Rows of A.
        alpha: The rank unless given, which makes the scale 1.
        targets: Ends of the names of linear maps and convolutions that get adapters, `*` for anything. The default are
            all attention maps of U-Nets and text encoders.
        dropout: Share of an adapter's inputs that is zero in training.
        dora: Learn the weights' lengths apart from their directions (Liu et al. 2024, arXiv 2402.09353).
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    targets: tuple[str, ...] = ATTENTION
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    dora: bool = False
