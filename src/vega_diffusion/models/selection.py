"""Which blocks to keep under a budget: the sets whose removal scores add up to least, exactly.

Units of equal cost differ by their score alone, so from each group of equal cost the cheapest to lose go first, and
only how many go from each group has to be tried. What is not here: scores (`importance.py`), recovery (training/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from math import log10

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.importance import MID_UNIT, removable_units
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.layer_map import LayerMap, block_table

# Costs that differ by less than this share belong to one group; measured times are never equal.
_SAME = 0.25


@dataclass(frozen=True)
class Choice:
    """One set of units to remove.

    Args:
        removed: The units.
        score: Sum of their removal errors (the additive prior).
        saved: Sum of their costs.
    """

    removed: tuple[str, ...]
    score: float
    saved: float


def choose(
    spec: UNetSpec, errors: Mapping[str, float], costs: Mapping[str, float], to_save: float, count: int = 1
) -> list[Choice]:
    """Return the best sets of units that save enough, by their summed errors, best first.

    Every attention layer keeps at least one transformer block; a mid block that keeps its attention keeps all of it,
    and then so does the last down block's first layer, since configs give both one depth. Sets differ in how many
    units go from each group of equal cost.

    Args:
        spec: The teacher.
        errors: Unit -> removal error.
        costs: Unit -> what its removal saves.
        to_save: How much has to be saved, in the unit of `costs`.
        count: How many sets.

    Raises:
        InvalidValue: Removing all that can go does not save enough.
    """
    groups = _groups(spec, errors, costs)
    orders = [_order(group, errors) for group in groups]
    found: list[Choice] = []
    for counts in product(*(range(len(order) + 1) for order in orders)):
        removed = [unit for order, taken in zip(orders, counts, strict=True) for unit in order[:taken]]
        saved = sum(costs[unit] for unit in removed)
        if saved < to_save or any(
            saved - costs[order[taken - 1]] >= to_save for order, taken in zip(orders, counts, strict=True) if taken
        ):
            continue  # too little, or more than is needed
        score = sum(errors[unit] for unit in removed)
        found.append(Choice(tuple(removed), score, saved))
    best = list(islice(filter(lambda one: _is_unet(spec, one), sorted(found, key=lambda one: one.score)), count))
    if not best:
        most = sum(costs[unit] for order in orders for unit in order)
        raise InvalidValue("--budget", f"saving {to_save:.6g}", f"at most {most:.6g} saved", "raise the budget")
    return best


def choose_shape(spec: UNetSpec, errors: Mapping[str, float], student: UNetSpec, count: int = 1) -> list[Choice]:
    """Return the sets of units whose removal leaves a student's shape, by their summed errors, best first.

    Layers do not bear on each other, so the best sums of all are put together from the best of each, exactly.

    Args:
        spec: The teacher.
        errors: Unit -> removal error.
        student: Which layers keep how many blocks; nothing else of it matters.
        count: How many sets.

    Raises:
        InvalidValue: The student has more blocks than the teacher somewhere.
    """
    wanted = [unit.rpartition(".")[0] for unit in removable_units(student) if unit != MID_UNIT]
    layers: dict[str, list[str]] = {}
    for unit in removable_units(spec):
        layers.setdefault(unit if unit == MID_UNIT else unit.rpartition(".")[0], []).append(unit)
    best: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
    for layer, units in layers.items():
        kept = wanted.count(layer) if layer != MID_UNIT else int(MID_UNIT in removable_units(student))
        if kept > len(units):
            raise InvalidValue("--budget", f"{kept} blocks in {layer}", f"at most the teacher's {len(units)}", "choose")
        options = sorted(
            (sum(errors[unit] for unit in removed), removed) for removed in combinations(units, len(units) - kept)
        )
        sums = ((score + more, (*removed, *further)) for score, removed in best for more, further in options[:count])
        best = sorted(sums)[:count]
    return [Choice(removed, score, 0.0) for score, removed in best]


def _is_unet(spec: UNetSpec, choice: Choice) -> bool:
    try:
        map_of(spec, choice.removed, "", "")
    except InvalidValue:
        return False
    return True


def map_of(spec: UNetSpec, removed: Sequence[str], name: str, source: str) -> LayerMap:
    """Return the layer map of the student that is left when units are removed.

    Raises:
        InvalidValue: What is left is no U-Net.
    """
    gone = set(removed)
    blocks: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for block in block_table(spec):
        if block in gone or (MID_UNIT in gone and block.startswith((f"{MID_UNIT}.", "mid_block.resnets.1"))):
            continue
        home, _, _ = block.rpartition(".")
        if not home.endswith(".transformer_blocks"):
            blocks[block] = block
            continue
        numbers[home] = numbers.get(home, -1) + 1
        blocks[f"{home}.{numbers[home]}"] = block
    layers = LayerMap(name=name, source=source, blocks=blocks)
    layers.student_spec(spec)
    return layers


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points that no other beats in both numbers (smaller is better), by the first number."""

    def beaten(name: str) -> bool:
        x, y = points[name]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def _groups(spec: UNetSpec, errors: Mapping[str, float], costs: Mapping[str, float]) -> list[list[str]]:
    """Return units of nearly equal cost together; the mid unit alone."""
    units = [unit for unit in removable_units(spec) if unit in errors]
    groups: dict[object, list[str]] = {}
    for unit in units:
        key = unit if unit == MID_UNIT else round(log10(costs[unit]) / log10(1 + _SAME)) if costs[unit] > 0 else None
        groups.setdefault(key, []).append(unit)
    return list(groups.values())


def _order(group: Sequence[str], errors: Mapping[str, float]) -> list[str]:
    """Return the units of a group in the order in which they go; the dearest of each attention layer never does."""
    if group[0] == MID_UNIT:
        return list(group)
    return sorted(_without_last(group, errors), key=lambda unit: errors[unit])


def _without_last(group: Sequence[str], errors: Mapping[str, float]) -> Iterator[str]:
    layers: dict[str, list[str]] = {}
    for unit in group:
        layers.setdefault(unit.rpartition(".")[0], []).append(unit)
    for units in layers.values():
        stays = max(units, key=lambda unit: errors[unit])
        yield from (unit for unit in units if unit != stays)
