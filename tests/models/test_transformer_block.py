"""The short forward pass of transformer blocks: the bits of diffusers' own, and nothing passed over."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from vega_diffusion.models.attention import TrainingAttention
from vega_diffusion.models.lora import add_lora
from vega_diffusion.models.transformer_block import use_short_forward
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.lora import LoraSpec

from ..tiny_models import tiny


def networks(lora: bool = False) -> tuple[Any, Any]:
    """Two equal U-Nets with our attention; the first has the short forward pass."""
    torch.manual_seed(0)
    short: Any = build_unet(tiny().unet)
    if lora:
        add_lora(short, LoraSpec(rank=2, targets=("to_q", "proj")), 3)
    short.set_attn_processor(TrainingAttention())
    long = copy.deepcopy(short)
    assert use_short_forward(short) == len(blocks_of(short)) > 0
    return short, long


def blocks_of(unet: nn.Module) -> list[Any]:
    return [part for part in unet.modules() if isinstance(part, BasicTransformerBlock)]


def asked(block: Any, seed: int = 1) -> tuple[torch.Tensor, dict[str, Any]]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 9, block.norm1.weight.numel(), generator=draw)
    return hidden, {"encoder_hidden_states": torch.randn(2, 7, tiny().unet.cross_attention_dim, generator=draw)}


def answer(block: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    hidden, more = asked(block)
    out = block(hidden.requires_grad_(), **more)
    learning = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return out, list(torch.autograd.grad(out.square().sum(), [hidden, *learning]))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answer_and_gradients_are_the_same_bits(lora: bool, dtype: torch.dtype) -> None:
    for short, long in zip(*map(blocks_of, networks(lora)), strict=True):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            (out, grads), (expected, others) = answer(short), answer(long)
        assert torch.equal(out, expected)
        assert len(grads) == len(others) > 1
        assert all(torch.equal(one, other) for one, other in zip(grads, others, strict=True))


@pytest.mark.parametrize("part", ["attn1", "attn2", "ff", "ff.net.0"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_within_a_block_fire(part: str, kind: str) -> None:
    block, calls = blocks_of(networks()[0])[0], []
    handle = getattr(block.get_submodule(part), kind)(lambda *given: calls.append(part))
    hidden, more = asked(block)
    watched = block(hidden, **more)
    assert calls == [part]
    handle.remove()
    assert torch.equal(block(hidden, **more), watched)
    assert calls == [part]


def test_what_is_not_plain_keeps_diffusers_way() -> None:
    short, long = networks()
    block, other = blocks_of(short)[0], blocks_of(long)[0]
    hidden, more = asked(block)
    mask = torch.tensor([0.0, 0, 0, 0, -1e4, -1e4, -1e4]).expand(2, 1, 7)
    with_mask = block(hidden, **more, encoder_attention_mask=mask)
    assert torch.equal(with_mask, other(hidden, **more, encoder_attention_mask=mask))
    assert not torch.equal(with_mask, block(hidden, **more))
    for changed in blocks_of(long):
        changed.set_chunk_feed_forward(3, 1)
    assert use_short_forward(long) == 0


def test_a_copy_runs_with_weights_of_its_own() -> None:
    block = blocks_of(networks()[0])[0]
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.norm1.weight.zero_()
    hidden, more = asked(block)
    assert not torch.equal(other(hidden, **more), block(hidden, **more))
