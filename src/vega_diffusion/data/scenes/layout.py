"""Where objects stand on the 128 px canvas: boxes for one, for two with a relation, for two to four of a kind.

All boxes are square, lie inside the canvas and never overlap; relations hold by a wide margin.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vega_diffusion.data.scenes.scene import CANVAS_SIZE, Box

SMALL_PX = (34, 48)
MEDIUM_PX = (66, 96)
LARGE_PX = (104, 122)
_MARGIN = 2


def place_one(size_word: str | None, rng: random.Random) -> Box:
    """Place a single object: near the middle, of medium size where the caption will not say small or large."""
    low, high = {"small": SMALL_PX, "large": LARGE_PX, None: MEDIUM_PX}[size_word]
    side = rng.randint(low, high)
    room = CANVAS_SIZE - side - 2 * _MARGIN
    reach = room * 0.35
    left = _MARGIN + room / 2 + rng.uniform(-reach, reach)
    top = _MARGIN + room / 2 + rng.uniform(-reach, reach)
    return _square(left, top, side)


def place_two(relation: str | None, rng: random.Random) -> list[Box]:
    """Place two objects; the first stands in `relation` to the second.

    "next to" and None (just two things) put them side by side in either order; None one time in five on top of
    each other.
    """
    if relation is None and rng.random() < 0.2:
        relation = rng.choice(("above", "below"))
    if relation in (None, "next to"):
        relation = rng.choice(("left of", "right of"))
    sides = [rng.randint(46, 59), rng.randint(46, 59)]
    first_low = relation in ("left of", "above")
    slack = CANVAS_SIZE - 2 * _MARGIN - sum(sides)
    gap = rng.uniform(min(3, slack), slack)
    start = _MARGIN + rng.uniform(0, slack - gap)
    order = (0, 1) if first_low else (1, 0)
    along = [0.0, 0.0]
    along[order[0]] = start
    along[order[1]] = start + sides[order[0]] + gap
    boxes: list[Box] = []
    for number in (0, 1):
        side = sides[number]
        room = CANVAS_SIZE - side - 2 * _MARGIN
        across = _MARGIN + room / 2 + rng.uniform(-13, 13)
        across = min(max(across, _MARGIN), _MARGIN + room)
        upright = relation in ("above", "below")
        boxes.append(_square(across, along[number], side) if upright else _square(along[number], across, side))
    return boxes


def in_reading_order(boxes: Sequence[Box]) -> list[Box]:
    """Return two boxes, the left one first where they stand side by side, else the upper one."""
    across, down = (abs(boxes[0][axis] - boxes[1][axis]) for axis in (0, 1))
    return sorted(boxes, key=lambda box: box[0] if across >= down else box[1])


def place_count(count: int, rng: random.Random) -> list[Box]:
    """Place two to four of a kind, all of one size, in cells of a grid."""
    cells: Sequence[tuple[float, float]]
    match count:
        case 2:
            side, cells = (
                rng.randint(46, 58),
                rng.choice([[(0, 0.5), (1, 0.5)], [(0, 0.2), (1, 0.8)], [(0, 0.8), (1, 0.2)]]),
            )
        case 3:
            if rng.random() < 0.3:
                side, cells = rng.randint(34, 39), [(0, 0.5), (0.5, 0.5), (1, 0.5)]
            else:
                side, cells = rng.randint(42, 56), [(0, 0), (1, 0), (0.5, 1)]
                if rng.random() < 0.5:
                    cells = [(x, 1 - y) for x, y in cells]
        case 4:
            side, cells = rng.randint(42, 56), [(0, 0), (1, 0), (0, 1), (1, 1)]
        case _:
            raise ValueError(f"count {count} is not 2, 3 or 4")
    room = CANVAS_SIZE - side - 2 * _MARGIN
    columns = len({x for x, _ in cells})
    spare = (room - side * (columns - 1)) / max(columns - 1, 1)
    boxes: list[Box] = []
    for x, y in cells:
        # Half of the free space between neighbours each way keeps them apart whatever is drawn.
        jitter = max(0.0, spare / 2 - 1)
        left = _MARGIN + x * room + rng.uniform(-jitter, jitter)
        top = _MARGIN + y * room + rng.uniform(-jitter, jitter)
        limit = CANVAS_SIZE - _MARGIN - side
        boxes.append(_square(min(max(left, _MARGIN), limit), min(max(top, _MARGIN), limit), side))
    return boxes


def _square(left: float, top: float, side: int) -> Box:
    x, y = int(left), int(top)
    return (x, y, x + side, y + side)
