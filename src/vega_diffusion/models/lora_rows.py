"""One network, other weights for some rows of a batch: what lets requests under different LoRAs share an evaluation.

A map that LoRAs change multiplies each row by the weights of that row's own request, so a row's arithmetic is that of a
network with those weights, at no more work. Which rows belong to whom is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RowWeights = tuple[int, Mapping[nn.Module, nn.Parameter]]
"""How many rows, and the weights that stand for those of some maps."""


@contextmanager
def weights_by_rows(groups: Sequence[RowWeights]) -> Iterator[None]:
    """Let rows of every input have weights of their own, for as long as the block lasts; no thread else may call.

    Args:
        groups: In the order of the rows; rows beyond the last group's are counted to it. Maps that a group does not
            name keep their own weights.
    """
    changed = list(dict.fromkeys(module for _, weights in groups for module in weights))
    try:
        for module in changed:
            module.forward = _forward(module, groups)  # type: ignore[method-assign]
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _forward(module: nn.Module, groups: Sequence[RowWeights]) -> Callable[[Tensor], Tensor]:
    """Return what computes a linear map or a convolution over rows with weights of their own."""
    parts: list[tuple[int, nn.Parameter]] = []
    for rows, weights in groups:
        weight: nn.Parameter = weights.get(module, module.weight)  # type: ignore[assignment]
        if parts and parts[-1][1] is weight:
            parts[-1] = parts[-1][0] + rows, weight
        else:
            parts.append((rows, weight))
    if isinstance(module, nn.Linear):
        compute: Callable[[Tensor, Tensor], Tensor] = lambda x, weight: nn.functional.linear(x, weight, module.bias)  # noqa: E731
    else:
        assert isinstance(module, nn.Conv2d), "LoRAs change linear maps and convolutions"
        compute = lambda x, weight: module._conv_forward(x, weight, module.bias)  # noqa: E731

    def forward(x: Tensor) -> Tensor:
        results, first = [], 0
        for index, (rows, weight) in enumerate(parts):
            last = len(x) if index == len(parts) - 1 else first + rows
            results.append(compute(x[first:last], weight))
            first = last
        return torch.cat(results)

    return forward
