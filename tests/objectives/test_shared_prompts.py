"""Samples with one prompt: they are found by their captions, and a U-Net's answers stay in the samples' order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vega_diffusion.models.attention import COUNTS, use_training_attention
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.shared_prompts import ask_by_prompt, by_prompt

from ..tiny_models import tiny


def test_equal_captions_come_together_and_empty_ones_stay_alone():
    assert by_prompt(["b", "a", "", "b", "", "a", "a"]) == ([0, 3, 1, 5, 6, 2, 4], (2, 3, 1, 1))
    assert by_prompt([]) == ([], ())


@pytest.mark.parametrize(("captions", "counts"), [(["a", "b", "a", "b"], (2, 2)), (["a", "", "a", ""], (2, 1, 1))])
def test_answers_are_those_with_every_prompt_given(captions: list[str], counts: tuple[int, ...]):
    torch.manual_seed(0)
    unet: Any = build_unet(tiny().unet)
    spec = tiny().unet
    assert spec.projection_class_embeddings_input_dim is not None
    assert spec.addition_time_embed_dim is not None
    pooled = spec.projection_class_embeddings_input_dim - 6 * spec.addition_time_embed_dim
    states = {"a": torch.randn(7, spec.cross_attention_dim), "b": torch.randn(7, spec.cross_attention_dim)}
    empty = [torch.zeros_like(states["a"]), torch.randn_like(states["a"])]  # silenced, and a caption of no words
    embeds = torch.stack([states[one] if one else empty.pop() for one in captions])
    added = {"text_embeds": torch.randn(4, pooled), "time_ids": torch.rand(4, 6)}
    asked = (torch.randn(4, 4, 8, 8), torch.tensor([1, 20, 300, 999]), embeds, added)
    given: list[Any] = []
    unet.register_forward_pre_hook(lambda _, args, more: given.append(more), with_kwargs=True)
    with torch.no_grad():
        plain = ask_by_prompt(unet, *asked, captions)
        use_training_attention(unet)
        without = ask_by_prompt(unet, *asked, None)
        found = ask_by_prompt(unet, *asked, captions)
    assert [more.get("cross_attention_kwargs") for more in given] == [None, None, {COUNTS: counts}]
    assert len(given[2]["encoder_hidden_states"]) == len(counts)
    torch.testing.assert_close(without, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
