"""Inner states of U-Nets: which of a student belong to which of a teacher, and how they are read.

What is not here: what is done with them (distillation.py) and where a map comes from (specs/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, assert_never

from torch import Tensor, nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.distillation import FeatureLevel
from vega_diffusion.specs.layer_map import LayerMap


class Pair(NamedTuple):
    """A student's module and the teacher's whose output it should have."""

    student: str
    teacher: str


def feature_pairs(level: FeatureLevel, layers: LayerMap) -> tuple[Pair, ...]:
    """Return the pairs of modules whose outputs are compared, in the order of the student's forward pass.

    A student's transformer block stands for a run of the teacher's: from the one it came from to the one before the
    next kept block. At level `transformer_block` its output is therefore compared with that of the run's last block,
    which is what the next block was trained to read; of several that came from one block, the last is compared. At
    `self_attention` like is compared with like. The mid block is one pair at level `module` whatever it holds. New
    blocks have no counterpart, so they belong to no pair.

    Args:
        level: Which states.
        layers: The student's map.

    Raises:
        InvalidValue: At level `transformer_block`, a layer's blocks do not ascend in one layer of the teacher.
    """
    match level:
        case "block":
            return tuple(Pair(name, name) for name in dict.fromkeys(_home(block) for block in layers.blocks))
        case "module":
            return _modules(layers)
        case "transformer_block":
            attentions = [block for block in layers.blocks if block.rpartition(".")[0].endswith(".attentions")]
            return tuple(pair for layer in attentions for pair in _runs(layers, layer))
        case "self_attention":
            kept = ((own, other) for own, other in layers.blocks.items() if ".transformer_blocks." in own)
            return tuple(Pair(f"{own}.attn1", f"{other}.attn1") for own, other in kept)
        case _:
            assert_never(level)


def _home(block: str) -> str:
    """Return the U-Net block that a block's name lies in: `down_blocks.1`, `mid_block`."""
    return "mid_block" if block.startswith("mid_block") else ".".join(block.split(".")[:2])


def _modules(layers: LayerMap) -> tuple[Pair, ...]:
    pairs = []
    for own, other in layers.blocks.items():
        if ".transformer_blocks." in own:
            continue
        pairs.append(Pair("mid_block", "mid_block") if own.startswith("mid_block") else Pair(own, other))
    return tuple(dict.fromkeys(pairs))


def _runs(layers: LayerMap, layer: str) -> list[Pair]:
    """Return the pairs of one attention layer: each block with the teacher's last before the next kept one.

    The last block belongs to the layer's whole output as its output projection reads it: the teacher's last block.
    """
    prefix, home = f"{layer}.transformer_blocks.", f"{layers.blocks[layer]}.transformer_blocks"
    # Teacher block -> the last of the student's blocks that came from it.
    last: dict[int, str] = {}
    for block in sorted((block for block in layers.blocks if block.startswith(prefix)), key=_number):
        origin = layers.blocks[block]
        if origin.rpartition(".")[0] != home or _number(origin) < max(last, default=0):
            allowed = f"blocks of {home} in ascending order at feature_level transformer_block"
            raise InvalidValue(f"map.blocks.{block}", origin, allowed, "sort them or take another level")
        last[_number(origin)] = block
    ends = [f"{home}.{number - 1}" for number in list(last)[1:]] + [f"{home}.-1"] * bool(last)
    return [Pair(student, teacher) for student, teacher in zip(last.values(), ends, strict=True)]


def _number(block: str) -> int:
    return int(block.rpartition(".")[2])


class SilentHook(RuntimeError):
    """A module whose output was asked for did not run: a bug in the pairs or in the network's wiring."""


@contextmanager
def captured(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of submodules during the `with`; afterwards no hook is left.

    A module that runs again (activation checkpointing recomputes) keeps its first output.

    Args:
        network: The network.
        names: Dotted names; a last part `-1` in a list of modules means its last one.

    Yields:
        Name -> output (the first part of a tuple), filled by the forward pass.

    Raises:
        SilentHook: On leaving without an exception, when a module did not run.
        AttributeError: There is no such module.
    """
    outputs: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs.setdefault(name, _tensor(output))

        return keep

    modules = {name: _module(network, name) for name in names}
    handles = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        yield outputs
        silent = sorted(modules.keys() - outputs.keys())
        if silent:
            raise SilentHook(f"{len(silent)} of {len(modules)} modules did not run, first {silent[0]}")
    finally:
        for handle in handles:
            handle.remove()


def _module(network: nn.Module, name: str) -> nn.Module:
    home, _, last = name.rpartition(".")
    found: Any = network.get_submodule(home)
    return found[int(last)] if last.lstrip("-").isdigit() else found.get_submodule(last)


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, (tuple, list)) else output.sample
