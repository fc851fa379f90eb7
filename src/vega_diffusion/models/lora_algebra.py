"""The algebra of low-rank changes: what an adapter adds to a weight, and the best adapter for a given change.

Tensors in, tensors out; networks and folders are `lora_merge`, files are `lora_file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vega_diffusion.models.lora_file import Adapter


def product(adapter: Adapter, device: torch.device | None = None) -> Tensor:
    """Return `alpha / rank * B A` in the shape of the map's weight, float32.

    For a convolution, A is a convolution of the same kernel and B one of 1x1, so their composition is the product of
    the two as matrices.
    """
    up, down = adapter.up.to(device).float(), adapter.down.to(device).float()
    joined = up.flatten(1) @ down.flatten(1)
    return (joined * adapter.scale).reshape(up.shape[0], *down.shape[1:])


def change(weight: Tensor, adapter: Adapter) -> Tensor:
    """Return W' - W for a map's weight W, float32: `s B A`; with a magnitude m, `m (W + s B A) / |W + s B A| - W`.

    Args:
        weight: W, `[out, in]` or `[out, in, kh, kw]`.
        adapter: Of that map.

    Source: Hu et al. 2021, arXiv 2106.09685, equation 3; Liu et al. 2024, arXiv 2402.09353, equation 5, with lengths
    of rows as in PEFT.
    """
    base = weight.float()
    added = product(adapter, weight.device)
    if adapter.magnitude is None:
        return added
    moved = base + added
    rows = (-1, *[1] * (weight.dim() - 1))
    lengths = torch.linalg.vector_norm(moved.flatten(1), dim=1)
    return moved * (adapter.magnitude.to(weight.device).float() / lengths).reshape(rows) - base


def changed(weight: Tensor, adapters: Sequence[tuple[Adapter, float]]) -> Tensor:
    """Return `W + sum of w_i change_i` in the weight's dtype, rounded once.

    Every change is that of its adapter alone, so several add up whatever their order, and weight 0 is no change.

    Args:
        weight: W.
        adapters: Adapters of this map and their weights w_i.
    """
    total = weight.float()
    for adapter, strength in adapters:
        if strength:
            total = total + strength * change(weight, adapter)
    return total.to(weight.dtype)


@dataclass(frozen=True)
class Truncated:
    """An adapter of lower rank, and what it keeps.

    Attributes:
        adapter: The best of its rank in the least-squares sense.
        energy: Sum of all squared singular values.
        kept: Sum of those that it keeps.
    """

    adapter: Adapter
    energy: float
    kept: float


def extract(difference: Tensor, rank: int) -> Truncated:
    """Return the best adapter of a rank for a difference of weights, by its singular values (Eckart and Young 1936).

    Args:
        difference: `[out, in]` or `[out, in, kh, kw]`; not all zero.
        rank: At most; a small map gets what it has. It is alpha in either case, so that all alphas of a file are one:
            diffusers misreads kohya files where they differ.
    """
    matrix = difference.float().flatten(1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    squares = s.double().square()
    own = min(rank, len(s))
    root = (s[:own] * (own / rank)).sqrt()
    up, down = u[:, :own] * root, root[:, None] * vh[:own]
    adapter = Adapter(_shaped(down, difference), _raised(up, difference), float(rank))
    return Truncated(adapter, float(squares.sum()), float(squares[:own].sum()))


def resize(adapter: Adapter, rank: int | None = None, energy: float | None = None) -> Truncated:
    """Return an adapter of lower rank for the same change, exactly, without the full-size product.

    With B = Q_B R_B and A^T = Q_A R_A, the singular values of B A are those of the r x r matrix R_B R_A^T. An adapter
    that has no more than the rank is returned as it is; alpha stays in any case, the factors take up the difference.

    Args:
        adapter: Any; a magnitude is kept, and energy is that of the product alone.
        rank: At most this one, or
        energy: the smallest rank that keeps this share of the sum of squared singular values, above 0, at most 1.
    """
    up, down = adapter.up.double().flatten(1), adapter.down.double().flatten(1)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    squares = s.square() * adapter.scale**2
    total = float(squares.sum())
    wanted = adapter.rank if rank is None else rank
    if energy is not None:
        # The last sum equals the total up to rounding; without the bound a share of 1 could find none.
        reached = squares.cumsum(0) >= energy * total
        wanted = int(reached.nonzero()[0, 0]) + 1 if reached.any() else len(s)
    if wanted >= adapter.rank:
        return Truncated(adapter, total, total)
    wanted = min(wanted, len(s))
    root = (s[:wanted] * (wanted / adapter.rank)).sqrt()
    new_up = (q_up @ (u[:, :wanted] * root)).to(adapter.up.dtype)
    new_down = ((root[:, None] * vh[:wanted]) @ q_down.T).to(adapter.down.dtype)
    smaller = replace(adapter, down=_shaped(new_down, adapter.down), up=_raised(new_up, adapter.down))
    return Truncated(smaller, total, float(squares[:wanted].sum()))


def _shaped(down: Tensor, like: Tensor) -> Tensor:
    return down.reshape(-1, *like.shape[1:]).contiguous()


def _raised(up: Tensor, like: Tensor) -> Tensor:
    return up.reshape(*up.shape, *[1] * (like.dim() - 2)).contiguous()
