"""Attention in training: diffusers' own results, with each prompt given once or for every sample."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from vega_diffusion.models.attention import COUNTS, takes_prompt_counts, use_training_attention
from vega_diffusion.models.lora import add_lora
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.lora import LoraSpec

from ..tiny_models import tiny


def networks(lora: bool) -> tuple[Any, Any]:
    torch.manual_seed(0)
    ours: Any = build_unet(tiny().unet)
    if lora:
        add_lora(ours, LoraSpec(rank=2), 3)
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    theirs = copy.deepcopy(ours)
    use_training_attention(ours)
    return ours, theirs


def answer(unet: Any, prompts: Tensor, **more: Any) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    spec, size = tiny().unet, 6
    embeds = prompts.clone().requires_grad_()
    assert spec.projection_class_embeddings_input_dim is not None
    assert spec.addition_time_embed_dim is not None
    pooled = spec.projection_class_embeddings_input_dim - 6 * spec.addition_time_embed_dim
    added = {"text_embeds": torch.randn(size, pooled), "time_ids": torch.rand(size, 6)}
    given = torch.randn(size, 4, 8, 8)
    out = unet(given, torch.arange(size), embeds, added_cond_kwargs=added, **more).sample
    (out * torch.randn_like(out)).sum().backward()
    found = {name: p.grad for name, p in unet.named_parameters() if p.requires_grad} | {"prompts": embeds.grad}
    return out.detach(), {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("counts", [None, (3, 3), (1, 3, 2)])
def test_answer_and_gradients_are_those_of_diffusers(lora: bool, counts: tuple[int, ...] | None):
    ours, theirs = networks(lora)
    assert takes_prompt_counts(ours)
    assert not takes_prompt_counts(theirs)
    torch.manual_seed(4)
    prompts = torch.randn(len(counts or range(6)), 7, tiny().unet.cross_attention_dim)
    repeats = torch.tensor(counts or [1] * 6)
    expected, grads = answer(theirs, prompts.repeat_interleave(repeats, 0))
    more = {} if counts is None else {"cross_attention_kwargs": {COUNTS: counts}}
    found, own = answer(ours, prompts, **more)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert own.keys() == grads.keys()
    groups = grads.pop("prompts").split(repeats.tolist())
    grads["prompts"] = torch.stack([group.sum(0) for group in groups])
    for name, grad in own.items():
        assert (grad - grads[name]).norm() <= 2e-4 * grads[name].norm() + 1e-6, name


def test_attention_that_is_more_than_maps_is_diffusers_own():
    ours, theirs = networks(lora=False)
    for unet in (ours, theirs):
        unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.rescale_output_factor = 2.0
    prompts = torch.randn(2, 7, tiny().unet.cross_attention_dim)
    expected, _ = answer(theirs, prompts.repeat_interleave(3, 0))
    found, _ = answer(ours, prompts, cross_attention_kwargs={COUNTS: (3, 3)})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ours.set_attn_processor(AttnProcessor2_0())
    assert not takes_prompt_counts(ours)
