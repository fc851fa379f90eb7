"""From a grid of objectness and boxes to separate objects: local maxima, then non-maximum suppression by distance."""

from __future__ import annotations

from math import hypot

from torch import Tensor
from torch.nn import functional

from vega_diffusion.specs.checker import STRIDE_PX, CheckerSpec

Box = tuple[float, float, float, float]
_LOG_SIDES = (1.0, 5.2)  # 2.7 to 181 px: what a box can be, whatever the network says


def peaks(scores: Tensor, boxes: Tensor, spec: CheckerSpec) -> list[tuple[int, int, float, Box]]:
    """Return (row, column, score, box in px) of every object, by falling score.

    A peak is at least as high as its eight neighbours and as the threshold. Of two peaks that are nearer to each other
    than `least_distance` times the smaller mean side, the higher one stays: boxes of different objects may overlap.

    Args:
        scores: `[G, G]`, 0..1.
        boxes: `[4, G, G]`: offset x, y from the cell's centre in cells, log width and height in px.
        spec: Threshold and distance.
    """
    highest = functional.max_pool2d(scores[None, None], 3, 1, 1)[0, 0]
    cells = ((scores >= highest) & (scores >= spec.score_threshold)).nonzero().tolist()
    ordered = sorted(cells, key=lambda cell: -float(scores[cell[0], cell[1]]))
    kept: list[tuple[int, int, float, Box]] = []
    for y, x in ordered:
        dx, dy, width, height = boxes[:, y, x].tolist()
        centre = (x + 0.5 + dx) * STRIDE_PX, (y + 0.5 + dy) * STRIDE_PX
        low, high = _LOG_SIDES
        half = [2.718281828 ** min(max(side, low), high) / 2 for side in (width, height)]
        box = (centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1])
        if all(_apart(box, other) >= spec.least_distance for _, _, _, other in kept):
            kept.append((y, x, float(scores[y, x]), box))
    return kept


def _apart(first: Box, second: Box) -> float:
    """Distance of the centres in mean sides of the smaller box."""
    side = min((box[2] - box[0] + box[3] - box[1]) / 2 for box in (first, second))
    across = (first[0] + first[2] - second[0] - second[2]) / 2
    down = (first[1] + first[3] - second[1] - second[3]) / 2
    return hypot(across, down) / side
