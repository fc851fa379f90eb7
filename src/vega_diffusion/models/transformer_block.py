"""A transformer block's forward pass in training: diffusers' operations, without asking at every step what it is.

diffusers' block and its attention ask for norms, masks and the signatures of processors at each call; at a mini
U-Net's sizes that costs some percent of a step (docs/log.md). Blocks that are anything but plain keep diffusers' way.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn


def use_short_forward(unet: nn.Module) -> int:
    """Let the plain transformer blocks of a U-Net, processors set, run as below; return how many they are."""
    plain = [block for block in unet.modules() if isinstance(block, BasicTransformerBlock) and _is_plain(block)]
    for block in plain:
        block.forward = MethodType(_forward, block)
    return len(plain)


def _is_plain(block: BasicTransformerBlock) -> bool:
    """Whether a block is self-attention, attention to the text and a gated unit, each after a norm, and no more."""
    net: Any = block.ff.net
    return (
        block.norm_type == "layer_norm"
        and block.attn2 is not None
        and not block.only_cross_attention
        and block.pos_embed is None
        and block._chunk_size is None
        and len(net) == 3
        and type(net[0]) is GEGLU
        and isinstance(net[1], nn.Dropout)
        and net[1].p == 0.0
    )


def _forward(
    block: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    timestep: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    class_labels: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
) -> Tensor:
    """Return `[B, S, D]` for `hidden_states [B, S, D]`, the same bits as diffusers' forward."""
    first, second, ff = block.attn1, block.attn2, block.ff
    watched = any(part._forward_hooks or part._forward_pre_hooks for part in (first, second, ff, ff.net[0]))
    if watched or attention_mask is not None or encoder_attention_mask is not None or hidden_states.ndim != 3:
        return type(block).forward(
            block,
            hidden_states,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            timestep,
            cross_attention_kwargs,
            class_labels,
            added_cond_kwargs,
        )
    more = cross_attention_kwargs or {}
    hidden_states = first.processor(first, block.norm1(hidden_states), **more) + hidden_states
    asked = block.norm2(hidden_states)
    hidden_states = second.processor(second, asked, encoder_hidden_states, **more) + hidden_states
    gated = ff.net[0]
    value, gate = gated.proj(block.norm3(hidden_states)).chunk(2, dim=-1)
    return ff.net[2](value * gated.gelu(gate)) + hidden_states
