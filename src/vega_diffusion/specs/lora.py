"""Low-rank adapters as data: rank, scale and where they sit, and which files act how strongly.

The adapters themselves are in `models/lora.py`.
"""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Annotated, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from vega_diffusion.errors import InvalidValue
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


MAX_WEIGHT = 10.0


class WeightedLora(NamedTuple):
    """A LoRA as it is named: its file (or folder) and how strongly it acts."""

    file: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str, field: str = "loras") -> WeightedLora:
        """Read "FILE" or "FILE@WEIGHT".

        What follows the last @ is the weight, unless it is a part of a path or ends as a file's name does.

        Raises:
            InvalidValue: No file, or a weight that is no number from -10 to 10; `field` is what to call it.
        """
        file, at, tail = text.rpartition("@")
        if not at or "/" in tail or PurePath(tail).suffix == ".safetensors":
            file, tail = text, "1"
        try:
            weight = float(tail)
        except ValueError:
            weight = math.nan
        if not file.strip() or not abs(weight) <= MAX_WEIGHT:  # also refuses NaN
            allowed = f"FILE or FILE@WEIGHT, a weight from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            raise InvalidValue(field, text, allowed, "write it as style.safetensors@0.8")
        return cls(file, weight)
