"""The attention kernel of a training step: which one runs, and that it computes the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import profile

from vega_diffusion.benchmarks.training_step import make_step
from vega_diffusion.training.attention import attention_kernel

CPU = torch.device("cpu")
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"


def operations(step: Callable[[str, bool], None], precision: str, own: bool) -> set[str]:
    with profile() as found:
        step(precision, own)
    return {event.key for event in found.key_averages()}


def test_bf16_on_a_cpu_trains_without_the_slow_fused_gradient() -> None:
    step = make_step("vega-mini", 1)
    assert FUSED in operations(step, "bf16", own=False)  # else torch has changed and this module has no reason any more
    assert FUSED not in operations(step, "bf16", own=True)
    assert FUSED in operations(step, "no", own=True)


def test_both_kernels_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 16, 8, requires_grad=True) for _ in range(3))
    gradients = []
    for precision in ("no", "bf16"):
        with attention_kernel(CPU, precision):
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        gradients.append(torch.autograd.grad(out.square().sum(), (query, key, value)))
    for fused, plain in zip(*gradients, strict=True):
        assert fused.abs().max() > 1e-3
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_the_loop_uses_it(make_trainer, recipe, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "vega_diffusion.training.loop.attention_kernel",
        lambda device, precision: asked.append((device.type, precision)) or attention_kernel(device, precision),
    )
    make_trainer(recipe(mixed_precision="bf16", steps=3)).train()
    assert asked == [("cpu", "bf16")] * 12  # two micro-steps a step, forwards and backwards
