"""Stochastic rounding: bf16 weights that learn as fp32 weights do, on average.

bf16 has eight significant bits, so a step of less than 1/512 of a weight is lost when it is rounded to the nearest.
Here any optimizer computes its step on fp32 copies of a few weights at a time, and what comes out is rounded up or down
by chance: up with the probability of the way that it has gone. The expected value is the fp32 one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vega_diffusion.diffusion.randomness import derive_seed

BUCKET = 2**24
"""Values whose fp32 copies are in memory together, unless one tensor has more."""

_UPPER = 1 if sys.byteorder == "little" else 0
"""Which half of an fp32 number is its bf16 part."""

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def round_stochastically(values: Tensor, seed: int) -> Tensor:
    """Round fp32 to bf16: away from zero with probability (lower 16 bits) / 2**16, otherwise towards zero.

    What bf16 can say stays as it is, and so do infinities and what is not a number.

    Args:
        values: fp32, any shape; their order in memory makes no difference.
        seed: Decides; the same seed gives the same numbers on one kind of device.

    Source: Gupta et al. 2015, arXiv 1502.02551, section 3.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    flat = values.reshape(-1)
    # 64 random bits serve four values: on a CPU, drawing them is what takes time.
    words = torch.empty((flat.numel() + 3) // 4, dtype=torch.int64, device=values.device)
    words.random_(-(2**63), None, generator=generator)
    chances = words.view(torch.int16)[: flat.numel()].int().add_(2**15)
    # The sum carries into the upper half with the probability wanted; that half is the bf16 number.
    halves = chances.add_(flat.view(torch.int32)).view(torch.int16)
    rounded = halves[_UPPER::2].contiguous().view(torch.bfloat16)
    return torch.where(flat.isnan(), torch.nan, rounded).view(values.shape)


class StochasticRounding(torch.optim.Optimizer):
    """An optimizer whose steps are computed in fp32 by another one, and rounded by chance where weights are bf16.

    The other one steps fp32 copies; its state is fp32 too. Groups and state are found here under the weights
    themselves, so that saving, resuming and learning rates know nothing of it. Draws are a function of seed, step and
    the parameter's name: `position` is the optimizer step, and whoever steps must set it.

    Args:
        build: Groups of parameters -> the optimizer.
        groups: Groups of the weights.
        names: `id(parameter)` -> name.
        seed: Of the run.
        at_once: The optimizer must see all parameters in one step, whatever memory their copies take.
    """

    def __init__(
        self,
        build: Build,
        groups: Sequence[dict[str, Any]],
        names: dict[int, str],
        seed: int,
        at_once: bool = False,
    ) -> None:
        super().__init__([dict(group) for group in groups], {})
        self.position = 0
        self._seed, self._at_once = seed, at_once
        self._copies = [
            (weight, nn.Parameter(weight.new_empty(0, dtype=torch.float32)), names[id(weight)])
            for group in self.param_groups
            for weight in group["params"]
        ]
        copies = {id(weight): copy for weight, copy, _ in self._copies}
        self.inner = build([group | {"params": [copies[id(p)] for p in group["params"]]} for group in groups])
        self._hand_back()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Do one step; a closure is not supported."""
        assert closure is None
        self._hand_over()
        for bucket in self._buckets():
            for weight, copy, _ in bucket:
                assert weight.grad is not None
                copy.data, copy.grad = weight.detach().float(), weight.grad.float()
            self.inner.step()
            for weight, copy, name in bucket:
                done = copy.detach()
                if weight.dtype == torch.bfloat16:
                    done = round_stochastically(done, derive_seed(self._seed, "rounding", self.position, name))
                weight.copy_(done)
                copy.grad, copy.data = None, copy.new_empty(0)
        self._hand_back()

    def _buckets(self) -> Iterator[list[tuple[Tensor, nn.Parameter, str]]]:
        """Yield parameters that have a gradient, in groups of at most `BUCKET` values."""
        bucket: list[tuple[Tensor, nn.Parameter, str]] = []
        filled = 0
        for one in self._copies:
            weight = one[0]
            if weight.grad is None:
                continue
            if bucket and not self._at_once and filled + weight.numel() > BUCKET:
                yield bucket
                bucket, filled = [], 0
            bucket.append(one)
            filled += weight.numel()
        if bucket:
            yield bucket

    def _hand_over(self) -> None:
        """Give the other optimizer what is known here: settings of groups, and state."""
        for mine, its in zip(self.param_groups, self.inner.param_groups, strict=True):
            its.update({key: value for key, value in mine.items() if key != "params"})
        self.inner.state.clear()
        for weight, copy, _ in self._copies:
            if weight in self.state:
                self.inner.state[copy] = self.state[weight]

    def _hand_back(self) -> None:
        """Take over from the other optimizer what its step has changed."""
        for mine, its in zip(self.param_groups, self.inner.param_groups, strict=True):
            mine.update({key: value for key, value in its.items() if key != "params"})
        for weight, copy, _ in self._copies:
            if copy in self.inner.state:
                self.state[weight] = self.inner.state[copy]
