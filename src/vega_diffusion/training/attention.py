"""Which attention kernel a training step uses, where torch's own choice is slow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_kernel(device: torch.device, mixed_precision: str) -> AbstractContextManager[object]:
    """Return a context in which attention runs by the kernel that trains fastest.

    torch 2.13 on a CPU computes the gradient of its fused attention in bf16 without matrix instructions: for vega-mini
    that is 45 % of a step (`docs/log.md`). Plain matrix products take a tenth of it. Everywhere else torch chooses.

    Args:
        device: Where the step runs.
        mixed_precision: The recipe's.
    """
    if device.type == "cpu" and mixed_precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
