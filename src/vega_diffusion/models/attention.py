"""A U-Net's attention in training: all maps of one input at once, keys and values once for each prompt.

Samples that share a prompt need its keys and values only once: samples of one prompt stand beside each other, and the
prompts are given once with how many samples each has. What does not live here: which samples share one (objectives/).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention, AttentionProcessor, AttnProcessor2_0
from torch import Tensor, nn

from vega_diffusion.models.lora_forward import adapted_maps, plain_map
from vega_diffusion.models.transformer_block import use_short_forward

COUNTS = "prompt_counts"
"""The key of `cross_attention_kwargs` that says how many samples in a row each prompt has."""


class TrainingAttention:
    """diffusers' attention processor for training: what `AttnProcessor2_0` computes, with fewer operations.

    A U-Net that has it also takes `cross_attention_kwargs={COUNTS: (n, ...)}` with `encoder_hidden_states [U, L, D]`
    of U prompts for `sum(counts)` samples.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        prompt_counts: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return `[B, S, D]` for `hidden_states [B, S, D]`."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        counts = None if encoder_hidden_states is None else prompt_counts
        if attention_mask is not None or not _is_plain(attn, hidden_states):
            if counts is not None:
                context = _repeated(context, counts)
            given = None if encoder_hidden_states is None else context
            return AttnProcessor2_0()(attn, hidden_states, given, attention_mask, temb)
        if encoder_hidden_states is None:
            query, key, value = _maps(hidden_states, attn.to_q, attn.to_k, attn.to_v)
        else:
            (query,) = _maps(hidden_states, attn.to_q)
            key, value = _maps(context, attn.to_k, attn.to_v)
        if counts is not None and len(set(counts)) > 1:
            key, value = _repeated(key, counts), _repeated(value, counts)
        # Samples in a row that share keys and values are one sample with more queries: no query looks at another.
        query, key, value = (
            one.view(len(key), -1, attn.heads, one.shape[-1] // attn.heads).transpose(1, 2)
            for one in (query, key, value)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).reshape(*hidden_states.shape[:2], -1)
        (out,) = _maps(mixed, cast(nn.ModuleList, attn.to_out)[0])
        return out


def use_training_attention(unet: nn.Module) -> None:
    """Let a U-Net attend as above, its plain transformer blocks by a shorter way to the same operations."""
    network: Any = unet
    network.set_attn_processor(TrainingAttention())
    use_short_forward(unet)


def takes_prompt_counts(unet: nn.Module) -> bool:
    """Whether a U-Net's first attention, and so all of them, can do with each prompt once."""
    for module in unet.modules():
        if isinstance(module, Attention):
            processor: AttentionProcessor | TrainingAttention = module.processor
            return isinstance(processor, TrainingAttention)
    return False


def _is_plain(attn: Attention, hidden_states: Tensor) -> bool:
    """Whether attention is four maps and nothing else, as in the U-Nets that are trained here."""
    out: Any = attn.to_out
    norms = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    return (
        hidden_states.ndim == 3
        and all(norm is None for norm in norms)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1.0
        and (out[1].p == 0.0 or not attn.training)
    )


def _maps(x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    plain = [one for one in (plain_map(layer, x) for layer in layers) if one is not None]
    return adapted_maps(x, plain) if len(plain) == len(layers) else tuple(layer(x) for layer in layers)


def _repeated(prompts: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Return each prompt's row as often as it has samples; told how many come out, no device has to be asked."""
    times = torch.tensor(counts, device=prompts.device)
    return prompts.repeat_interleave(times, dim=0, output_size=sum(counts))
