"""Surgery: a student U-Net out of a teacher's weights by a layer map, with every tensor accounted for.

A student's block takes over the tensors of the teacher's block that the map names; what lies between blocks (first
and last convolution, embeddings, changes of resolution) comes from its namesake. Blocks that are new start by adding
nothing where they can, so that a student with more blocks than its teacher computes at first exactly what that does.
Where several transformer blocks come from one, each adds its share: the run is a finer walk along the same way.
Source of the latter: function-preserving initialisation of residual branches, as in Chen et al. 2015 (Net2Net, arXiv
1511.05641) and Goyal et al. 2017 (zero-initialised last layer of a residual branch, arXiv 1706.02677, section 5.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from vega_diffusion.errors import UnreadableModel
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.layer_map import BlockKind, LayerMap, kind_of

# The last linear maps of a block's residual branches: with these at zero, the block adds nothing.
_BRANCH_ENDS: dict[BlockKind, tuple[str, ...]] = {
    "transformer_block": ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2"),
    "attention": ("proj_out",),
    "resnet": ("conv2",),
}


@dataclass(frozen=True)
class Surgery:
    """Where every tensor goes: student tensor -> teacher tensor, and what has no counterpart.

    Args:
        copied: Tensors of the same name on both sides.
        reindexed: Student tensor -> teacher tensor of another name.
        new: Student tensors with fresh weights.
        dropped: Teacher tensors that no student tensor takes over.
    """

    copied: tuple[str, ...]
    reindexed: dict[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def origins(self) -> dict[str, str]:
        """Student tensor -> the teacher tensor it comes from."""
        return {name: name for name in self.copied} | self.reindexed

    def counts(self) -> dict[str, int]:
        """Return how many tensors were copied, re-indexed, new and dropped."""
        return {field: len(value) for field, value in asdict(self).items()}

    def __str__(self) -> str:
        return ", ".join(f"{count} {field}" for field, count in self.counts().items())


def plan_surgery(layers: LayerMap, student: UNetSpec, teacher: UNetSpec) -> Surgery:
    """Decide where every tensor comes from; nothing is allocated (meta device).

    Raises:
        InvalidValue: The map does not fit the two.
        UnreadableModel: A tensor between the blocks is missing or of another shape in the teacher.
    """
    layers.check(student, teacher)
    with torch.device("meta"):
        mine, theirs = build_unet(student).state_dict(), build_unet(teacher).state_dict()
    copied, reindexed, new = [], {}, []
    for name, tensor in mine.items():
        origin = _origin(name, layers)
        if origin is None:
            new.append(name)
            continue
        if origin not in theirs or theirs[origin].shape != tensor.shape:
            found = list(theirs[origin].shape) if origin in theirs else "not there"
            raise UnreadableModel(
                f"map {layers.name}: {name} wants {list(tensor.shape)} of the teacher's {origin}, which is {found}; "
                "choose a teacher of the same widths and levels"
            )
        if origin == name:
            copied.append(name)
        else:
            reindexed[name] = origin
    taken = {*copied, *reindexed.values()}
    surgery = Surgery(tuple(copied), reindexed, tuple(new), tuple(name for name in theirs if name not in taken))
    if len(surgery.origins) + len(new) != len(mine) or len(taken) + len(surgery.dropped) != len(theirs):
        raise AssertionError(f"surgery lost tensors: {surgery}, of {len(mine)} and {len(theirs)}")
    return surgery


def carve(
    layers: LayerMap, student: UNetSpec, teacher: UNetSpec, weights: Mapping[str, Tensor]
) -> tuple[UNet2DConditionModel, Surgery]:
    """Build a student that starts from a teacher's weights.

    Fresh weights of new blocks depend on torch's global generator: seed it first for a reproducible start.

    Args:
        layers: Which student block comes from which teacher block.
        student: Its architecture.
        teacher: Its architecture.
        weights: The teacher's state dict, in any floating dtype; it is copied, never shared.

    Returns:
        The student, in the dtype of the teacher's weights, in evaluation mode, and the account of its tensors.

    Raises:
        InvalidValue: The map does not fit the two.
        UnreadableModel: The weights are not the teacher's, or do not fit.
    """
    surgery = plan_surgery(layers, student, teacher)
    foreign = {*surgery.origins.values(), *surgery.dropped} ^ weights.keys()
    if foreign:
        raise UnreadableModel(
            f"teacher's weights: {len(foreign)} tensors are missing or left over (first: {min(foreign)}); choose "
            "weights of the teacher's architecture"
        )
    with torch.device("cpu" if surgery.new else "meta"):
        unet = build_unet(student)
    silence_new(unet, layers)
    fresh = unet.state_dict()
    dtype = weights["conv_in.weight"].dtype
    state = {name: weights[origin].detach().clone() for name, origin in surgery.origins.items()}
    state |= {name: fresh[name].to(dtype) for name in surgery.new}
    _share_out(state, layers)
    try:
        unet.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UnreadableModel(f"teacher's weights: {str(error).splitlines()[-1].strip()}; choose others") from error
    unet.requires_grad_(True)
    return unet.eval(), surgery


def silence_new(unet: nn.Module, layers: LayerMap) -> None:
    """Let a map's new blocks start by adding nothing, where they stand in a residual path."""
    for block in layers.new:
        if ".".join(block.split(".")[:-2]) in layers.new:
            continue  # inside an attention layer that is new itself
        for end in _BRANCH_ENDS[kind_of(block)]:
            for parameter in unet.get_submodule(f"{block}.{end}").parameters():
                nn.init.zeros_(parameter)


def _share_out(state: dict[str, Tensor], layers: LayerMap) -> None:
    """Divide what transformer blocks of one origin add by their number."""
    copies = Counter(layers.blocks.values())
    for block, origin in layers.blocks.items():
        if copies[origin] > 1 and ".transformer_blocks." in block:
            for end in _BRANCH_ENDS["transformer_block"]:
                for part in ("weight", "bias"):
                    state[f"{block}.{end}.{part}"] /= copies[origin]


def _origin(name: str, layers: LayerMap) -> str | None:
    """Return the teacher's tensor for a student's: by its innermost block, by its own name outside of blocks."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        block = ".".join(parts[:length])
        if block in layers.blocks:
            return ".".join((layers.blocks[block], *parts[length:]))
        if block in layers.new:
            return None
    return name


def account(surgery: Surgery) -> dict[str, Any]:
    """Return plain data of a surgery for a student's provenance: counts, and which tensor names moved."""
    return {"counts": surgery.counts(), "reindexed": surgery.reindexed, "new": list(surgery.new)}
