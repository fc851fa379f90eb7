"""Attention on the meta device that keeps for the way back what fused kernels keep, and does as much work.

On that device torch takes attention apart into matrix products, whose score matrices no fused kernel keeps: at 1024 px
they would be most of a U-Net's memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _FusedAttention(torch.autograd.Function):
    """Inputs, output and one number a row are kept (Dao et al. 2022, arXiv 2205.14135); scores are not."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query @ key.transpose(-1, -2) @ value
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        (grad,) = grads
        scores = grad @ value.transpose(-1, -2)
        return scores @ key, scores.transpose(-1, -2) @ query, scores.transpose(-1, -2) @ grad


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention keep what fused kernels keep, for the length of a `with`; only shapes come out right."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _FusedAttention.apply(query, key, value)  # type: ignore[return-value]

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
