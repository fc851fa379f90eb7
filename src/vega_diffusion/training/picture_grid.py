"""Rows of pictures as one PNG."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor


def save_grid(rows: Sequence[Tensor], path: object) -> None:
    """Write rows of pictures, each `[N, 3, H, W]` in [-1, 1], as one PNG; shorter rows end in white."""
    widest = max(len(row) for row in rows)
    full = [torch.cat([row, row.new_ones(widest - len(row), *row.shape[1:])]) for row in rows]
    lines = [torch.cat(list(row), dim=2) for row in full]
    levels = ((torch.cat(lines, dim=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(str(path))
