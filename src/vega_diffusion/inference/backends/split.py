"""A U-Net's forward pass cut in two: what lies below the outermost layers, and the outermost layers themselves.

The arithmetic and its order are those of diffusers' `UNet2DConditionModel.forward` (tests: bit for bit); every layer
is called as a module, so adapters injected into it act. The cut is a place in the last up block: its resnet number
`n - 1 - branch` of n gets `deep`, joined to the skip connection of the same resolution. Above the cut lie

    branch 0: conv_in, the last resnet (and attention) of the last up block, conv_out: 3.4 % of Vega's work
    branch b: also the first b resnets (and attentions) of the first down block and b more of the last up block

so the largest branch recomputes the whole last up block.

Source: Ma et al., DeepCache, arXiv 2312.00858, section 3.2; branches as in its authors' package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.protocol import Question


def num_branches(unet: Any) -> int:
    """Return in how many places a U-Net can be cut."""
    return len(unet.up_blocks[-1].resnets)


def check_branch(unet: Any, branch: int) -> None:
    """Raise unless a U-Net can be cut at that branch.

    Raises:
        InvalidValue: It cannot.
    """
    last = num_branches(unet) - 1
    if not 0 <= branch <= last:
        raise InvalidValue("branch", branch, f"0 to {last} for this U-Net", "choose a smaller one")


def deep_shape(unet: Any, question: Question, branch: int) -> tuple[int, ...]:
    """Return the shape of `deep` for a question: `[N, K, h, w]`, at the latents' own resolution."""
    resnets = unet.up_blocks[-1].resnets
    joined_channels = resnets[len(resnets) - 1 - branch].in_channels
    # The skip connection beside it comes from conv_in or the first down block, which have the same width.
    channels = joined_channels - unet.conv_in.out_channels
    rows, _, height, width = question.x_t.shape
    return (rows, channels, height, width)


def full_pass(unet: Any, question: Question, branch: int, any_size: bool = False) -> tuple[Tensor, Tensor]:
    """Return the prediction `[N, C, h, w]` and the hidden state that crosses the cut.

    Args:
        unet: A diffusers `UNet2DConditionModel`.
        question: What to evaluate.
        branch: Where to cut.
        any_size: Write down the sizes to reach on the way up even where plain doubling gives them, so that a trace of
            this pass holds for latents of any size. The values are the same.
    """
    embedding, text = _conditioning(unet, question)
    hidden = _enter(unet, question)
    skips = (hidden,)
    for block in unet.down_blocks:
        if _has_attention(block):
            hidden, more = block(hidden_states=hidden, temb=embedding, encoder_hidden_states=text)
        else:
            hidden, more = block(hidden_states=hidden, temb=embedding)
        skips += more
    if unet.mid_block is not None:
        if _has_attention(unet.mid_block):
            hidden = unet.mid_block(hidden, embedding, encoder_hidden_states=text)
        else:
            hidden = unet.mid_block(hidden, embedding)
    # Latents that do not halve evenly: each up block is told the size that it must reach.
    is_sized = any_size or any(size % 2**unet.num_upsamplers for size in question.x_t.shape[-2:])
    for block in unet.up_blocks[:-1]:
        own, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
        size = skips[-1].shape[2:] if is_sized else None
        if _has_attention(block):
            hidden = block(
                hidden_states=hidden,
                temb=embedding,
                res_hidden_states_tuple=own,
                encoder_hidden_states=text,
                upsample_size=size,
            )
        else:
            hidden = block(hidden_states=hidden, temb=embedding, res_hidden_states_tuple=own, upsample_size=size)
    cut = num_branches(unet) - 1 - branch
    deep = _last_block(unet, hidden, skips, embedding, text, range(cut))
    hidden = _last_block(unet, deep, skips, embedding, text, range(cut, num_branches(unet)))
    return _leave(unet, hidden), deep


def shallow_pass(unet: Any, question: Question, deep: Tensor, branch: int) -> Tensor:
    """Return the prediction `[N, C, h, w]` from the layers above the cut and a hidden state that crossed it before."""
    embedding, text = _conditioning(unet, question)
    hidden = _enter(unet, question)
    skips = (hidden,)
    first = unet.down_blocks[0]
    for index in range(branch):
        hidden = first.resnets[index](hidden, embedding)
        if _has_attention(first):
            hidden = first.attentions[index](hidden, encoder_hidden_states=text, return_dict=False)[0]
        skips += (hidden,)
    count = num_branches(unet)
    skips += (hidden,) * (count - len(skips))  # places of skip connections that are not read above the cut
    hidden = _last_block(unet, deep, skips, embedding, text, range(count - 1 - branch, count))
    return _leave(unet, hidden)


class FullGraph(nn.Module):
    """`full_pass` as a module of plain tensors, for compilers and exporters."""

    def __init__(self, unet: nn.Module, branch: int, any_size: bool = False) -> None:
        super().__init__()
        self.unet, self.branch, self.any_size = unet, branch, any_size

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return prediction and deep; see `Question` for the arguments."""
        question = Question(x_t, timesteps, prompt_embeds, pooled_prompt_embeds, time_ids, timestep_cond)
        return full_pass(self.unet, question, self.branch, self.any_size)


class ShallowGraph(nn.Module):
    """`shallow_pass` as a module of plain tensors, for compilers and exporters.

    `prompt_embeds` and `deep` come first after the latents and timesteps, as in `FullGraph`, so that a caller feeds
    both by name.
    """

    def __init__(self, unet: nn.Module, branch: int) -> None:
        super().__init__()
        self.unet, self.branch = unet, branch

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        deep: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction; see `Question` for the arguments."""
        question = Question(x_t, timesteps, prompt_embeds, pooled_prompt_embeds, time_ids, timestep_cond)
        return shallow_pass(self.unet, question, deep, self.branch)


def _conditioning(unet: Any, question: Question) -> tuple[Tensor, Tensor]:
    """Return the embedding of time, size and pooled text `[N, E]`, and the text as the attentions read it."""
    added = {"text_embeds": question.pooled_prompt_embeds, "time_ids": question.time_ids}
    time = unet.get_time_embed(sample=question.x_t, timestep=question.timesteps)
    embedding = unet.time_embedding(time, question.timestep_cond)
    text = question.prompt_embeds
    more = unet.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs=added)
    embedding = embedding if more is None else embedding + more
    if unet.time_embed_act is not None:
        embedding = unet.time_embed_act(embedding)
    return embedding, unet.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs=added)


def _enter(unet: Any, question: Question) -> Tensor:
    sample = 2 * question.x_t - 1.0 if unet.config.center_input_sample else question.x_t
    return unet.conv_in(sample)


def _last_block(
    unet: Any, hidden: Tensor, skips: tuple[Tensor, ...], embedding: Tensor, text: Tensor, layers: range
) -> Tensor:
    """Run some layers of the last up block; layer i reads the skip connection i places before the last."""
    block = unet.up_blocks[-1]
    for index in layers:
        hidden = block.resnets[index](torch.cat([hidden, skips[-1 - index]], dim=1), embedding)
        if _has_attention(block):
            hidden = block.attentions[index](hidden, encoder_hidden_states=text, return_dict=False)[0]
    return hidden


def _leave(unet: Any, hidden: Tensor) -> Tensor:
    if unet.conv_norm_out:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)


def _has_attention(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
