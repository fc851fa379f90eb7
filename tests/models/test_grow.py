"""A grown U-Net computes what the small one does, bit for bit, and its new layers can learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vega_diffusion.errors import UnreadableModel
from vega_diffusion.models.grow import grow
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import MINI_SDXL, VEGA_MINI

WIDTHS = {"block_out_channels": (8, 16, 32), "attention_head_dim": (1, 2, 4), "norm_num_groups": 4}
SMALL = VEGA_MINI.unet.model_copy(update=WIDTHS)
LARGE = MINI_SDXL.unet.model_copy(update=WIDTHS)


def run(unet: torch.nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    size = SMALL.cross_attention_dim
    pooled = SMALL.projection_class_embeddings_input_dim - 6 * SMALL.addition_time_embed_dim  # type: ignore[operator]
    added = {"text_embeds": torch.randn(2, pooled, generator=draw), "time_ids": torch.ones(2, 6)}
    latents, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 7, size, generator=draw)
    return unet(latents, torch.tensor([1, 700]), encoder_hidden_states=text, added_cond_kwargs=added).sample


@pytest.mark.parametrize("without_mid_block", [False, True])
def test_the_grown_network_computes_what_the_small_one_does(without_mid_block: bool) -> None:
    torch.manual_seed(1)
    spec = SMALL.model_copy(update={"mid_block_type": None}) if without_mid_block else SMALL
    small, large = build_unet(spec), build_unet(LARGE)
    before = run(large)
    layers = grow(large, small.state_dict())
    with torch.no_grad():
        assert torch.equal(run(small), run(large))
        assert not torch.allclose(before, run(large))
    parts = dict(large.named_parameters())
    named = {key for key in parts if any(key.startswith(f"{layer}.") for layer in layers)}
    assert named == parts.keys() - dict(small.named_parameters()).keys()
    assert ("mid_block.resnets.0" in layers) is without_mid_block


def test_after_one_step_every_new_weight_has_a_gradient() -> None:
    torch.manual_seed(2)
    small, large = build_unet(SMALL), build_unet(LARGE)
    layers = grow(large, small.state_dict())
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(2):  # the ends of the branches move first, then what feeds them gets a gradient
        optimizer.zero_grad()
        run(large).square().mean().backward()
        optimizer.step()
    for name, parameter in large.named_parameters():
        if any(name.startswith(f"{layer}.") for layer in layers):
            assert parameter.grad is not None
            assert parameter.grad.any(), name


NO_ADDED = {
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}


@pytest.mark.parametrize(
    ("small", "large", "match"),
    [
        ({}, {"block_out_channels": (8, 16, 64)}, "another shape"),
        ({}, {"layers_per_block": 3}, "another shape"),
        ({}, {"transformer_layers_per_block": (1, 1, 1)}, "no place in the larger"),
        (NO_ADDED, {}, "add_embedding.* no layer that can start by adding nothing"),
    ],
)
def test_what_is_no_part_of_the_large_network_is_an_error(
    small: dict[str, object], large: dict[str, object], match: str
) -> None:
    unet = build_unet(SMALL.model_copy(update=large))
    first = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    with pytest.raises(UnreadableModel, match=match):
        grow(unet, build_unet(SMALL.model_copy(update=small)).state_dict())
    assert all(torch.equal(parameter, first[name]) for name, parameter in unet.named_parameters())
