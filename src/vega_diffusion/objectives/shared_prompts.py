"""Which samples of a batch have the same prompt, and a U-Net's answer with each prompt's keys and values made once.

What does not live here: the attention that does so (`models/attention`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn

from vega_diffusion.models.attention import COUNTS, takes_prompt_counts


def ask_by_prompt(
    unet: nn.Module,
    x_t: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    added: Mapping[str, Tensor],
    captions: Sequence[str] | None,
    states: MutableMapping[str, Tensor] | None = None,
) -> Tensor:
    """Return a U-Net's answer, `[B, C, H, W]`, fp32; prompts that come twice are read once where the U-Net can.

    Args:
        unet: Any U-Net.
        x_t: `[B, C, H, W]`.
        timesteps: Int64 `[B]`.
        prompt_embeds: `[B, L, D]`.
        added: Further conditions, `[B, ...]`.
        captions: Of the samples; equal ones have equal rows of `prompt_embeds`, except that empty text may stand for
            zeros or for the empty caption. None where nothing is known.
        states: Inner states, `[B, ...]`, that hooks put here meanwhile; they are put into the samples' order, too.
    """
    # On an accelerator finding the rows of each prompt costs more than reading a prompt twice.
    order, counts = by_prompt(captions or () if x_t.device.type == "cpu" else ())
    if len(counts) == len(order) or not takes_prompt_counts(unet):
        return unet(x_t, timesteps, encoder_hidden_states=prompt_embeds, added_cond_kwargs=dict(added)).sample.float()
    rows = torch.tensor(order, device=x_t.device)
    starts = torch.tensor([sum(counts[:number]) for number in range(len(counts))], device=x_t.device)
    answer = unet(
        x_t[rows],
        timesteps[rows],
        encoder_hidden_states=prompt_embeds[rows[starts]],
        added_cond_kwargs={name: value[rows] for name, value in added.items()},
        cross_attention_kwargs={COUNTS: counts},
    ).sample.float()
    back = torch.argsort(rows)
    if states is not None:
        states.update({name: state[back] for name, state in states.items()})
    return answer[back]


def by_prompt(captions: Sequence[str]) -> tuple[list[int], tuple[int, ...]]:
    """Return the samples in an order that brings equal captions together, and how many each has.

    Samples without a caption stay alone: some have the empty caption's states, others zeros.
    """
    members: dict[str | int, list[int]] = {}
    for row, caption in enumerate(captions):
        members.setdefault(caption or row, []).append(row)
    return [row for rows in members.values() for row in rows], tuple(len(rows) for rows in members.values())
