"""Token ids -> the text condition of an SDXL-shaped U-Net, as a training step needs it.

What does not live here: prompts as text, chunking and weights of prompts (inference/).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def encode_tokens(
    text_encoder: nn.Module, text_encoder_2: nn.Module, input_ids: Tensor, input_ids_2: Tensor
) -> tuple[Tensor, Tensor]:
    """Return SDXL's text condition: the penultimate states of both encoders side by side, and the pooled embedding.

    Args:
        text_encoder: A `CLIPTextModel`.
        text_encoder_2: A `CLIPTextModelWithProjection`.
        input_ids: Int64 `[B, 77]`, by the first tokenizer.
        input_ids_2: Int64 `[B, 77]`, by the second.

    Returns:
        `prompt_embeds [B, 77, D1 + D2]` and `pooled_prompt_embeds [B, P]`.

    Source: Podell et al. 2023, section 2.1 (arXiv 2307.01952).
    """
    first = text_encoder(input_ids, output_hidden_states=True)
    second = text_encoder_2(input_ids_2, output_hidden_states=True)
    states = (first.hidden_states[-2], second.hidden_states[-2])
    return join_states(*states), second.text_embeds


def join_states(first: Tensor, second: Tensor) -> Tensor:
    """Put two encoders' token states side by side in the wider dtype of the two."""
    return torch.cat([first, second.to(first.dtype)], dim=-1)


def silence(prompt_embeds: Tensor, pooled_prompt_embeds: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Set the condition of some samples to zeros, which is SDXL's "no prompt".

    Args:
        prompt_embeds: `[B, L, D]`.
        pooled_prompt_embeds: `[B, P]`.
        keep: Bool `[B]`; False makes a sample's condition zeros.
    """
    return prompt_embeds * keep[:, None, None], pooled_prompt_embeds * keep[:, None]
