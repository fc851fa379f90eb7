"""Which teacher block a student's block came from, told by the weights of the two.

Trained networks of one shape have unrelated weights, but a block that was copied and trained on stays near its origin:
the cosine of the two weight vectors tells it. Blocks of one layer keep their order when others are removed, so the
best order-keeping assignment is taken, and what every single block would have chosen is told beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.layer_map import Block, LayerMap, block_table

# Cosines of unrelated weight vectors of a block are a few thousandths at most; below this, a block counts as new.
RELATED = 0.05


@dataclass(frozen=True)
class Match:
    """What the weights say of one student block.

    Args:
        student: The block.
        teacher: The teacher's block it came from; None where none is related.
        similarity: Cosine of the two weight vectors; 0 without a teacher block.
        runner_up: The next best candidate, None where there is no other.
        runner_up_similarity: Its cosine.
    """

    student: str
    teacher: str | None
    similarity: float
    runner_up: str | None
    runner_up_similarity: float

    @property
    def confidence(self) -> float:
        """How much nearer the choice is than the next candidate; negative where order overruled a nearer one."""
        return self.similarity - self.runner_up_similarity


@dataclass(frozen=True)
class Recovery:
    """A map told from weights, and how sure each line of it is."""

    layers: LayerMap
    matches: tuple[Match, ...]

    @property
    def least_confident(self) -> Match:
        """The line that is least sure among blocks that had a choice, or among all if none had."""
        return min([one for one in self.matches if one.runner_up] or self.matches, key=lambda one: one.confidence)


def recover_map(
    student: UNetSpec, weights: Mapping[str, Tensor], teacher: UNetSpec, teacher_weights: Mapping[str, Tensor]
) -> Recovery:
    """Infer the layer map of a student from its weights and its teacher's.

    Args:
        student: The student's architecture.
        weights: Its state dict, any floating dtype.
        teacher: The teacher's architecture.
        teacher_weights: Its state dict.

    Returns:
        The map, checked against both, and the similarities behind it. A transformer block is compared with those of
        the layer that its own layer came from, a resnet or attention layer with those of the same U-Net block.

    Raises:
        InvalidValue: The two have different widths.
    """
    mine, theirs = block_table(student), block_table(teacher)
    matches: dict[str, Match] = {}
    layers = [name for name in mine if ".transformer_blocks." not in name]
    for container in dict.fromkeys(name.rpartition(".")[0] for name in layers):
        _match(container, container, mine, theirs, weights, teacher_weights, matches)
    for layer in [name for name in layers if ".attentions." in name]:
        origin = matches[layer].teacher
        home = f"{origin}.transformer_blocks" if origin else ""
        _match(f"{layer}.transformer_blocks", home, mine, theirs, weights, teacher_weights, matches)
    ordered = tuple(matches[name] for name in mine)
    blocks = {one.student: one.teacher for one in ordered if one.teacher is not None}
    new = tuple(one.student for one in ordered if one.teacher is None)
    if not blocks:
        raise InvalidValue("student", "these weights", "weights that came from the teacher's", "choose another teacher")
    layers_found = LayerMap(name="recovered", source="told by the similarity of weights", blocks=blocks, new=new)
    layers_found.check(student, teacher)
    return Recovery(layers_found, ordered)


def _match(
    container: str,
    origin: str,
    mine: Mapping[str, Block],
    theirs: Mapping[str, Block],
    weights: Mapping[str, Tensor],
    teacher_weights: Mapping[str, Tensor],
    matches: dict[str, Match],
) -> None:
    """Match the blocks of one student container with those of one teacher container."""
    left = [name for name in mine if name.rpartition(".")[0] == container]
    right = [name for name in theirs if origin and name.rpartition(".")[0] == origin]
    cosines = _cosines(left, right, weights, teacher_weights)
    for row, name in enumerate(left):
        for column, candidate in enumerate(right):
            if mine[name] != theirs[candidate]:
                cosines[row][column] = -1.0
    for row, column in enumerate(_in_order(cosines)):
        name, values = left[row], cosines[row]
        others = sorted(((value, right[index]) for index, value in enumerate(values) if index != column), reverse=True)
        runner_up = others[0] if others and others[0][0] >= 0 else (0.0, None)
        matches[name] = Match(
            student=name,
            teacher=None if column is None else right[column],
            similarity=0.0 if column is None else values[column],
            runner_up=runner_up[1],
            runner_up_similarity=max(runner_up[0], 0.0),
        )


def _cosines(
    left: Sequence[str], right: Sequence[str], weights: Mapping[str, Tensor], teacher_weights: Mapping[str, Tensor]
) -> list[list[float]]:
    """Return the cosines of the blocks' matrices and kernels (norms and biases are alike in any two networks)."""
    products = torch.zeros(len(left), len(right), dtype=torch.float64)
    own, other = torch.zeros(len(left), dtype=torch.float64), torch.zeros(len(right), dtype=torch.float64)
    for suffix in _matrices(left[0], weights) if left and right else ():
        first = [_vector(weights, name, suffix) for name in left]
        second = [_vector(teacher_weights, name, suffix) for name in right]
        for row, a in enumerate(first):
            own[row] += a.square().sum()
            for column, b in enumerate(second):
                if a.shape == b.shape:
                    products[row, column] += torch.dot(a, b)
        other += torch.stack([b.square().sum() for b in second])
    lengths = torch.outer(own.sqrt(), other.sqrt()).clamp_min(torch.finfo(torch.float64).tiny)
    return (products / lengths).tolist()


def _matrices(block: str, weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names, within a block, of its tensors of two and more dimensions; inner blocks are not its own."""
    prefix = f"{block}."
    names = [
        name.removeprefix(prefix) for name, value in weights.items() if name.startswith(prefix) and value.dim() > 1
    ]
    return [name for name in names if not name.startswith("transformer_blocks.")]


def _vector(weights: Mapping[str, Tensor], block: str, suffix: str) -> Tensor:
    name = f"{block}.{suffix}"
    return weights[name].detach().flatten().float() if name in weights else torch.zeros(0)


def _in_order(cosines: Sequence[Sequence[float]]) -> list[int | None]:
    """Assign to every row a column further right than those before, or none, so that the sum is largest.

    Alignment by dynamic programming (Needleman & Wunsch 1970) without a price for gaps; unrelated pairs never align.
    """
    rows, columns = len(cosines), len(cosines[0]) if cosines else 0
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            value = cosines[row][column]
            taken = value + best[row + 1][column + 1] if value >= RELATED else -1.0
            best[row][column] = max(taken, best[row + 1][column], best[row][column + 1])
    chosen: list[int | None] = []
    column = 0
    for row in range(rows):
        place = column
        while place < columns and best[row][place] == best[row][place + 1]:
            place += 1
        aligned = place < columns and best[row][place] == cosines[row][place] + best[row + 1][place + 1]
        if aligned and cosines[row][place] >= RELATED:
            chosen.append(place)
            column = place + 1
        else:
            chosen.append(None)
    return chosen
