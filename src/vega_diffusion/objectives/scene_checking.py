"""Scene checking: pixels -> objects on a grid, style and background; the checker learns from exact ground truth.

Centres are learned by the focal loss of Zhou et al. 2019 (arXiv 1904.07850, equation 1), everything about an object in
all cells near its centre, so that every picture gives many a signal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scenes.targets import IGNORE
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.models.checker import CheckerOutput
from vega_diffusion.objectives.protocol import Loss
from vega_diffusion.specs.checker import STRIDE_PX
from vega_diffusion.specs.objective import SceneCheckingSpec

NEAR = 0.25  # cells whose centre is within this share of a box's sides from its middle say what it is
NEAR_PX = 6.0  # and those within this distance, so that the smallest object has at least one
SPREAD = 0.1  # standard deviation of the slope around a centre, as a share of the mean side
LEAST_SPREAD_PX = 3.0


class Cells(NamedTuple):
    """Boxes on the grid.

    Attributes:
        heat: `[B, G, G]`, 1 in the cell of a centre, falling around it.
        centre: `[B, G, G]`, True in the cell of a centre.
        owner: `[B, G, G]`, number of the object that a cell belongs to, -1 where it is near none.
        share: `[B, G, G]`, 1 / number of the owner's cells, 0 where there is none.
    """

    heat: Tensor
    centre: Tensor
    owner: Tensor
    share: Tensor


class SceneChecking:
    """The loss of a student with a `checker` (a `SceneChecker`); batches are those of `data.scene_checks`."""

    def __init__(self, spec: SceneCheckingSpec) -> None:
        self.spec = spec

    def to(self, device: torch.device) -> None:
        """There is nothing frozen to move."""

    def __call__(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Loss:
        """Return the loss, its parts, and the shares of right nouns, colours and styles in cells near centres."""
        spec, tensors = self.spec, batch.tensors
        output: CheckerOutput = student.get_submodule("checker")(tensors["pixels"])
        boxes, judged = tensors["boxes"], tensors["judged"].float()
        cells = assign(boxes, output.objectness.shape[-1])
        nouns, colours = (of_owner(tensors[name], cells.owner, IGNORE) for name in ("nouns", "colours"))
        styles = tensors["style"][:, None, None].expand_as(cells.owner).masked_fill(cells.owner < 0, IGNORE)
        parts = {
            "objectness": focal(output.objectness.float(), cells, judged),
            "noun": near_cross_entropy(output.nouns.float(), nouns, cells.share),
            "colour": near_cross_entropy(output.colours.float(), colours, cells.share),
            "box": box_error(output.boxes.float(), boxes, cells) * judged,
            "style": near_cross_entropy(output.styles.float(), styles, cells.share),
            "background": _cross_entropy(output.background.float(), tensors["background"]),
        }
        weights = {name: getattr(spec, f"{name}_weight") for name in parts}
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum(0)
        right = {
            "noun_accuracy": _accuracy(output.nouns, nouns),
            "colour_accuracy": _accuracy(output.colours, colours),
            "style_accuracy": _accuracy(output.styles, styles),
        }
        return Loss.from_samples(total, parts | right)


def assign(boxes: Tensor, grid: int) -> Cells:
    """Lay boxes `[B, M, 4]` in px (all zero: no object) on a grid of `grid` x `grid` cells."""
    ticks = (torch.arange(grid, device=boxes.device, dtype=boxes.dtype) + 0.5) * STRIDE_PX
    size = boxes[..., 2:] - boxes[..., :2]
    there = (size.amin(-1) > 0)[..., None, None]
    middle = (boxes[..., 2:] + boxes[..., :2]) / 2
    across = ticks[None, None, None, :] - middle[..., 0, None, None]
    down = ticks[None, None, :, None] - middle[..., 1, None, None]
    width, height = size[..., 0, None, None], size[..., 1, None, None]
    near = (across.abs() <= (NEAR * width).clamp_min(NEAR_PX)) & (down.abs() <= (NEAR * height).clamp_min(NEAR_PX))
    far = (across / width.clamp_min(1)).square() + (down / height.clamp_min(1)).square()
    far = far.masked_fill(~(near & there), float("inf"))
    nearest, owner = far.min(1)
    owner = owner.masked_fill(nearest.isinf(), -1)
    own = owner[:, None] == torch.arange(boxes.shape[1], device=boxes.device)[None, :, None, None]
    number = own.sum((2, 3), keepdim=True).clamp_min(1)
    share = (own / number).sum(1)
    # The slope is measured from the middle of the centre's cell, so that the peak itself is exactly 1.
    cell = (middle / STRIDE_PX).floor().clamp(0, grid - 1)
    off_x = ticks[None, None, None, :] - (cell[..., 0, None, None] + 0.5) * STRIDE_PX
    off_y = ticks[None, None, :, None] - (cell[..., 1, None, None] + 0.5) * STRIDE_PX
    spread = (SPREAD * (width + height) / 2).clamp_min(LEAST_SPREAD_PX)
    slope = (-0.5 * (off_x.square() + off_y.square()) / spread.square()).exp() * there
    heat = slope.amax(1)
    return Cells(heat, heat == 1, owner, share)


def of_owner(values: Tensor, owner: Tensor, none: int) -> Tensor:
    """Give every cell `[B, G, G]` its owner's value of `[B, M]`; `none` where there is no owner."""
    flat = values.gather(1, owner.clamp_min(0).flatten(1)).view(owner.shape)
    return flat.masked_fill(owner < 0, none)


def focal(logits: Tensor, cells: Cells, judged: Tensor) -> Tensor:
    """Focal loss of the centres, `[B]`: summed over cells, per object, zero where `judged` `[B]` is zero."""
    right, wrong = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    score = logits.sigmoid()
    hit = -(1 - score).square() * right * cells.centre
    miss = -(1 - cells.heat).pow(4) * score.square() * wrong * ~cells.centre
    return (hit + miss).sum((1, 2)) / cells.centre.sum((1, 2)).clamp_min(1) * judged


def near_cross_entropy(logits: Tensor, targets: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy in cells near centres, mean over a picture's objects with a target, `[B]`.

    Args:
        logits: `[B, N, G, G]`.
        targets: `[B, G, G]`, `IGNORE` where there is none.
        share: Weights of cells; those of one object add up to 1.
    """
    known = share * (targets != IGNORE)
    loss = functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    return (loss * known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)


def box_error(predicted: Tensor, boxes: Tensor, cells: Cells) -> Tensor:
    """Mean absolute error of offset (cells) and log sides in cells near centres, mean over objects, `[B]`."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1)
    middle = (boxes[..., 2:] + boxes[..., :2]) / 2 / STRIDE_PX - 0.5
    wanted = torch.cat([middle, size.log()], dim=-1)
    index = cells.owner.clamp_min(0).flatten(1)[..., None].expand(-1, -1, 4)
    grid = predicted.shape[-1]
    target = wanted.gather(1, index).view(-1, grid, grid, 4).permute(0, 3, 1, 2)
    ticks = torch.arange(grid, device=boxes.device, dtype=boxes.dtype)
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    target = target - torch.stack([columns, rows, torch.zeros_like(rows), torch.zeros_like(rows)])
    error = (predicted - target).abs().mean(1) * cells.share
    return error.sum((1, 2)) / cells.share.sum((1, 2)).clamp_min(1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def _accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    known = targets != IGNORE
    return ((logits.argmax(1) == targets) & known).sum() / known.sum().clamp_min(1)
