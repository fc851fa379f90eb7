"""Linear maps with adapters, computed as one autograd function for all maps of one input; PEFT's modules around it.

PEFT's own forward pass is a chain of a dozen small operations a map, each of which keeps its input for the way back. At
a mini U-Net's sizes that chain costs more than the products in it. What is computed here is the same:

    u = s x A^T, y = x W^T + b + u B^T
    t = s dy B, dx = dy W + t A, dA = t^T x, dB = dy^T u

What does not live here: where adapters go and their files (`lora`), and attention (`attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor


class AdaptedMap(NamedTuple):
    """A frozen linear map with one adapter.

    Args:
        weight: `[out, in]`.
        bias: `[out]`, or None.
        down: A, `[rank, in]`, fp32.
        up: B, `[out, rank]`, fp32.
        scale: Of their product.
    """

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    scale: float


class AdaptedLinear(PeftLinear):
    """PEFT's adapted linear map, with its names, its merging and its switches; only training's common case is fast."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the map's output, `[..., out]` for `[..., in]`."""
        plain = None if args or kwargs else plain_map(self, x)
        return super().forward(x, *args, **kwargs) if plain is None else adapted_maps(x, (plain,))[0]


def plain_map(layer: object, x: Tensor) -> AdaptedMap | None:
    """Return what a module computes where it is one plain fp32 adapter on a frozen base, or None: PEFT computes others.

    Args:
        layer: Any module.
        x: Its input.
    """
    # Asked of every map at every step: a module's own table is ten times as fast as its attributes.
    if type(layer) is not AdaptedLinear or layer.disable_adapters or layer.merged_adapters or layer.lora_variant:
        return None
    parts: Any = layer._modules
    base, downs, (name, *others) = parts["base_layer"], parts["lora_A"]._modules, layer.active_adapters
    if others or len(downs) != 1 or name not in downs or layer.lora_bias[name]:
        return None
    if type(parts["lora_dropout"]._modules[name]) is not torch.nn.Identity:
        return None
    weight, down = base._parameters["weight"], downs[name]._parameters["weight"]
    if weight.requires_grad or base._forward_hooks or down.dtype != torch.float32:
        return None
    if _autocast_dtype(x) is None and not x.dtype == weight.dtype == torch.float32:
        return None
    up = parts["lora_B"]._modules[name]._parameters["weight"]
    return AdaptedMap(weight, base._parameters["bias"], down, up, layer.scaling[name])


def adapted_maps(x: Tensor, maps: Sequence[AdaptedMap]) -> tuple[Tensor, ...]:
    """Return the outputs of several maps of one input, each `[..., out]`, in autocast's dtype where it is on.

    Args:
        x: `[..., in]`.
        maps: From `plain_map`.
    """
    dtype = _autocast_dtype(x) or x.dtype
    tensors = [tensor for one in maps for tensor in one[:4]]
    return _AdaptedMaps.apply(x, dtype, tuple(one.scale for one in maps), *tensors)  # type: ignore[return-value]


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # autocast knows no such device, and says so by an error
        return None
    return torch.get_autocast_dtype(kind)


class _AdaptedMaps(torch.autograd.Function):
    """All maps of one input. Products over a rank keep it as their first dimension: others are slow on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, scales: tuple[float, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        given = x.to(dtype)
        rows = given.reshape(-1, x.shape[-1])
        outs, kept = [], []
        for number, scale in enumerate(scales):
            weight, bias, down, up = tensors[4 * number : 4 * number + 4]
            y = torch.nn.functional.linear(rows, weight.to(dtype), None if bias is None else bias.to(dtype))
            inner = torch.mm(down.to(dtype), rows.t())  # [rank, M]
            if scale != 1.0:
                inner.mul_(scale)
            y.addmm_(inner.t(), up.to(dtype).t())
            outs.append(y.view(*x.shape[:-1], -1))
            kept += [weight, down, up, inner]
        ctx.save_for_backward(given, *kept)
        ctx.dtype, ctx.scales, ctx.input_dtype = dtype, scales, x.dtype
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        given, *kept = ctx.saved_tensors
        rows, dtype = given.reshape(-1, given.shape[-1]), ctx.dtype
        dx: Tensor | None = None
        found: list[Tensor | None] = []
        for number, (scale, grad) in enumerate(zip(ctx.scales, grads, strict=True)):
            weight, down, up, inner = kept[4 * number : 4 * number + 4]
            needs_down, needs_up = ctx.needs_input_grad[4 * number + 5 : 4 * number + 7]
            dy = grad.to(dtype).reshape(-1, grad.shape[-1])
            through = torch.mm(up.to(dtype).t().contiguous(), dy.t())  # [rank, M]
            if scale != 1.0:
                through.mul_(scale)
            d_down = torch.mm(through, rows).to(down.dtype) if needs_down else None
            d_up = torch.mm(inner, dy).t().to(up.dtype) if needs_up else None
            found += [None, None, d_down, d_up]
            if ctx.needs_input_grad[0]:
                dx = torch.mm(dy, weight.to(dtype)) if dx is None else dx.addmm_(dy, weight.to(dtype))
                dx.addmm_(through.t(), down.to(dtype))
        whole = None if dx is None else dx.view(given.shape).to(ctx.input_dtype)
        return (whole, None, None, *found)
