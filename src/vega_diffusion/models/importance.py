"""How much a block matters: what its removal costs the network's answer, and what it saves.

A unit is what can be taken out and leave a U-Net of the published kind: a transformer block, or the mid block's
attention layer with its second resnet. Scores are measured by leaving one unit out at a time; that they add up is an
assumption (`selection.py`), and that a small score means an easy recovery is another (docs/layer-maps.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from vega_diffusion.models.measure import count_parameters, example_inputs, macs_by_module
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.layer_map import block_table

MID_UNIT = "mid_block.attentions.0"

Ask = Callable[[nn.Module], Tensor]
"""Asks a U-Net a fixed question and returns its answer, `[B, C, H, W]`."""


def removable_units(spec: UNetSpec) -> list[str]:
    """Return the units of a U-Net in the order of the forward pass; the mid block's layer stands for all it holds."""
    names = [name for name in block_table(spec) if ".transformer_blocks." in name and not name.startswith("mid_block.")]
    return names + ([MID_UNIT] if MID_UNIT in block_table(spec) else [])


@contextmanager
def bypassed(unet: nn.Module, units: Sequence[str]) -> Iterator[None]:
    """Let units hand on what they are given, for the length of a `with`."""
    modules: list[Any] = []
    for unit in units:
        modules.append(unet.get_submodule(unit))
        if unit == MID_UNIT:
            modules.append(unet.get_submodule("mid_block.resnets.1"))
    for module in modules:
        # An instance's own attribute hides the class's method; deleting it is the way back.
        module.forward = _hand_on_layer if type(module).__name__ == "Transformer2DModel" else _hand_on
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _hand_on(hidden_states: Tensor, *rest: Any, **more: Any) -> Tensor:
    return hidden_states


def _hand_on_layer(hidden_states: Tensor, *rest: Any, **more: Any) -> tuple[Tensor]:
    return (hidden_states,)


@torch.no_grad()
def removal_errors(
    unet: nn.Module, units: Sequence[str], questions: Sequence[Ask], progress: Callable[[int, int], object]
) -> dict[str, float]:
    """Return each unit's score: how far the answer moves without it, in units of the answer's own size.

    The mean over questions of |answer without - answer|^2 / |answer|^2.

    Args:
        unet: The teacher, in evaluation mode.
        units: Some of `removable_units`.
        questions: Fixed batches.
        progress: Called with (units done, units).

    Source: the output-loss criterion of Zhang et al. 2024, section 3.2 (arXiv 2404.11098).
    """
    answers = [ask(unet).float() for ask in questions]
    errors: dict[str, float] = {}
    for number, unit in enumerate(units):
        with bypassed(unet, [unit]):
            moved = [
                (ask(unet).float() - answer).square().sum() for ask, answer in zip(questions, answers, strict=True)
            ]
        sizes = [answer.square().sum() for answer in answers]
        errors[unit] = float(torch.stack(moved).sum() / torch.stack(sizes).sum())
        progress(number + 1, len(units))
    return errors


@dataclass(frozen=True)
class Costs:
    """What each unit costs and what the whole network does: parameters, MACs or seconds."""

    units: dict[str, float]
    whole: float


def parameter_costs(spec: UNetSpec) -> Costs:
    """Count the parameters that go with each unit."""
    with torch.device("meta"):
        unet = build_unet(spec)
    units = {unit: float(count_parameters(unet.get_submodule(unit))) for unit in removable_units(spec)}
    if MID_UNIT in units:
        units[MID_UNIT] += count_parameters(unet.get_submodule("mid_block.resnets.1"))
    return Costs(units, float(count_parameters(unet)))


def mac_costs(spec: UNetSpec) -> Costs:
    """Count the multiply-accumulates that go with each unit, in one forward at the model's own size."""
    with torch.device("meta"):
        unet = build_unet(spec).eval()
        inputs = example_inputs(spec, spec.sample_size, spec.sample_size)
    macs = macs_by_module(unet, **inputs)
    units = {unit: float(macs[unit]) for unit in removable_units(spec)}
    if MID_UNIT in units:
        units[MID_UNIT] += macs["mid_block.resnets.1"]
    return Costs(units, float(macs[""]))


@torch.no_grad()
def latency_costs(unet: nn.Module, spec: UNetSpec, repeats: int = 5) -> Costs:
    """Time each unit on this machine: the median between its entry and its exit, in a forward at the model's own size.

    Args:
        unet: The network, on the device that matters.
        spec: Its architecture.
        repeats: Forward passes; one more before them warms up.
    """
    place = next(unet.parameters())
    with torch.device(place.device):
        inputs = example_inputs(spec, spec.sample_size, spec.sample_size)
    times: dict[str, list[float]] = {unit: [] for unit in (*removable_units(spec), "")}
    started: dict[str, float] = {}

    def now() -> float:
        if place.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def enter(unit: str) -> Any:
        return lambda module, inputs: started.__setitem__(unit, now())

    def leave(unit: str) -> Any:
        return lambda module, inputs, output: times[unit].append(now() - started[unit])

    handles = []
    for unit in times:
        last = "mid_block.resnets.1" if unit == MID_UNIT else unit
        handles.append(unet.get_submodule(unit).register_forward_pre_hook(enter(unit)))
        handles.append(unet.get_submodule(last).register_forward_hook(leave(unit)))
    try:
        for _ in range(repeats + 1):
            unet(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    medians = {unit: median(found[1:]) for unit, found in times.items()}
    return Costs({unit: medians[unit] for unit in removable_units(spec)}, medians[""])
