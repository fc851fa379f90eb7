"""Grows a U-Net: a deeper one takes over a shallower one's layers, what it has beyond them starts by adding nothing.

The grown network therefore computes at first exactly what the small one does. Source: function-preserving
initialisation of residual branches, as in Chen et al. 2015 (Net2Net, arXiv 1511.05641) and Goyal et al. 2017
(zero-initialised last layer of a residual branch, arXiv 1706.02677, section 5.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vega_diffusion.errors import UnreadableModel

# A layer that may be new -> the last linear maps of its residual branches. Layers of the down and up path themselves
# are not among them: a new one there would change which skip connection goes where.
_BRANCH_ENDS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r".+\.transformer_blocks\.\d+"), ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2")),
    (re.compile(r".+\.attentions\.\d+"), ("proj_out",)),
    (re.compile(r"mid_block\.resnets\.\d+"), ("conv2",)),
)


def grow(unet: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Give a U-Net the weights of a smaller one of the same widths; its further layers start by adding nothing.

    Args:
        unet: The larger network, with fresh weights.
        weights: The smaller network's state dict.

    Returns:
        Names of the layers that are new, sorted.

    Raises:
        UnreadableModel: The smaller network is not a part of the larger one.
    """
    own = unet.state_dict()
    foreign = sorted(weights.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    if foreign or shapes:
        raise UnreadableModel(
            f"model.grow_from.unet: {len(foreign)} tensors have no place in the larger U-Net, {len(shapes)} another "
            f"shape (first: {(foreign or shapes)[0]}); choose a network of the same widths whose layers it all has"
        )
    layers = _new_layers(own.keys() - weights.keys(), weights)
    unet.load_state_dict(dict(weights), strict=False)
    for layer, ends in layers.items():
        for end in ends:
            for parameter in unet.get_submodule(f"{layer}.{end}").parameters():
                torch.nn.init.zeros_(parameter)
    return sorted(layers)


def _new_layers(missing: Iterable[str], weights: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the outermost new layer of every missing tensor, with the ends of its residual branches."""
    layers: dict[str, tuple[str, ...]] = {}
    for key in missing:
        found = {
            match.group(): ends
            for pattern, ends in _BRANCH_ENDS
            if (match := pattern.match(key)) and not any(known.startswith(f"{match.group()}.") for known in weights)
        }
        if not found:
            raise UnreadableModel(
                f"model.grow_from.unet: {key} has no counterpart in the smaller U-Net and is no layer that can start "
                "by adding nothing; choose a network of the same blocks and layers per block"
            )
        outermost = min(found, key=len)
        layers[outermost] = found[outermost]
    return layers
