"""`LayerMap`: for every block of a student U-Net the teacher's block it came from, and what a U-Net's blocks are.

A map and a teacher's architecture say all about the student: its spec follows (`student_spec`), so do the weights it
starts from (`models/surgery.py`), which features can be compared, and where an adapter goes. Maps do not depend on
widths: one file serves SDXL and the mini family. What is not here: which blocks are worth keeping.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import DownBlock, MidBlock, UNetSpec, UpBlock
from vega_diffusion.specs.base import Spec

BlockKind = Literal["resnet", "attention", "transformer_block"]

_HOME = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)"
_KINDS: dict[BlockKind, re.Pattern[str]] = {
    "resnet": re.compile(rf"{_HOME}\.resnets\.\d+"),
    "attention": re.compile(rf"{_HOME}\.attentions\.\d+"),
    "transformer_block": re.compile(rf"{_HOME}\.attentions\.\d+\.transformer_blocks\.\d+"),
}
# What a student may have of its own; everything else it shares with its teacher.
_STRUCTURE = {
    "sample_size",
    "dropout",
    "upcast_attention",
    "layers_per_block",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
}


class Block(NamedTuple):
    """What decides a block's tensors; two blocks of equal description are exchangeable."""

    kind: BlockKind
    in_channels: int
    out_channels: int
    heads: int


class LayerMap(Spec):
    """Which teacher block each student block came from.

    Args:
        name: What the map is called.
        source: Why these blocks: a published finding, a measurement, a choice.
        blocks: Student block -> teacher block, named as in diffusers: `up_blocks.0.attentions.1.transformer_blocks.1`.
        new: Student blocks that no teacher block stands for; they start with fresh weights.
    """

    name: str = "custom"
    source: str = ""
    blocks: dict[str, str]
    new: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_blocks(self) -> Self:
        for student, teacher in self.blocks.items():
            if kind_of(student, "map.blocks") != kind_of(teacher, f"map.blocks.{student}"):
                raise InvalidValue(f"map.blocks.{student}", teacher, "a block of the same kind", "name another block")
        for block in self.new:
            kind_of(block, "map.new")
            if block in self.blocks:
                raise InvalidValue("map.new", block, "blocks that map.blocks does not name", "remove it from one")
        for block in self.student_blocks:
            home = block.rpartition(".transformer_blocks.")[0]
            if home and home not in self.blocks and home not in self.new:
                raise InvalidValue(
                    "map.blocks", block, f"blocks whose attention layer is listed, too ({home})", "add it"
                )
        return self

    @property
    def student_blocks(self) -> tuple[str, ...]:
        """All blocks of the student, those with a teacher block first."""
        return (*self.blocks, *self.new)

    def kept(self, layer: str) -> tuple[int, ...]:
        """Return the teacher's indices of the transformer blocks in one of the student's attention layers."""
        prefix = f"{layer}.transformer_blocks."
        return tuple(_index(teacher) for student, teacher in self.blocks.items() if student.startswith(prefix))

    def student_spec(self, teacher: UNetSpec) -> UNetSpec:
        """Return the architecture of the student that this map carves out of a teacher.

        Raises:
            InvalidValue: The map does not fit the teacher, or its blocks make no U-Net.
        """
        spec = _spec_of_blocks(self.student_blocks, teacher)
        self.check(spec, teacher)
        return spec

    def check(self, student: UNetSpec, teacher: UNetSpec) -> None:
        """Check that every block exists on its side, fits its counterpart and that none is left out.

        Raises:
            InvalidValue: Names the first block that does not fit.
        """
        for field in UNetSpec.model_fields.keys() - _STRUCTURE:
            own, other = getattr(student, field), getattr(teacher, field)
            if own != other:
                raise InvalidValue(f"student.unet.{field}", own, f"the teacher's {other!r}", "choose another teacher")
        mine, theirs = block_table(student), block_table(teacher)
        for block in self.student_blocks:
            if block not in mine:
                raise InvalidValue("map.blocks", block, f"the student's {len(mine)} blocks", "remove or rename it")
        for block in mine:
            if block not in self.blocks and block not in self.new:
                raise InvalidValue("map.blocks", None, f"a line for every student block ({block})", "add it, or to new")
        for block, origin in self.blocks.items():
            if origin not in theirs:
                raise InvalidValue(
                    f"map.blocks.{block}", origin, f"one of the teacher's {len(theirs)} blocks", "name another block"
                )
            if mine[block] != theirs[origin]:
                raise InvalidValue(
                    f"map.blocks.{block}", origin, f"a block like {mine[block]}, not {theirs[origin]}", "name another"
                )

    def then(self, later: LayerMap) -> LayerMap:
        """Return the map of a student carved by `later` out of this map's student, straight from this map's teacher.

        Raises:
            InvalidValue: `later` names a block that this map's student does not have.
        """
        known = {block: None for block in self.new} | dict(self.blocks)
        blocks: dict[str, str] = {}
        new = list(later.new)
        for student, between in later.blocks.items():
            if between not in known:
                raise InvalidValue(f"map.blocks.{student}", between, f"a block of {self.name}'s student", "rename it")
            origin = known[between]
            if origin is None:
                new.append(student)
            else:
                blocks[student] = origin
        return LayerMap(name=later.name, source=f"{self.name}, then {later.name}", blocks=blocks, new=tuple(new))

    def to_toml(self) -> str:
        """Return the map as a TOML file that `from_toml` reads back."""
        lines = [f"name = {json.dumps(self.name)}", f"source = {json.dumps(self.source, ensure_ascii=False)}"]
        lines += [f"new = {json.dumps(list(self.new))}", "", "[blocks]"]
        lines += [f'"{student}" = "{teacher}"' for student, teacher in self.blocks.items()]
        return "\n".join(lines) + "\n"


def kind_of(block: str, field: str = "block") -> BlockKind:
    """Return what kind of block a name stands for.

    Raises:
        InvalidValue: It is no block's name.
    """
    for kind, pattern in _KINDS.items():
        if pattern.fullmatch(block):
            return kind
    raise InvalidValue(
        field,
        block,
        "names such as mid_block.resnets.0 or down_blocks.2.attentions.0.transformer_blocks.1",
        "rename it",
    )


def block_table(spec: UNetSpec) -> dict[str, Block]:
    """Return a U-Net's blocks by name, in the order of the forward pass, with what decides their tensors."""
    table: dict[str, Block] = {}
    channels = spec.block_out_channels
    levels = spec.num_levels
    heads = _per_level(spec.attention_head_dim, levels)
    layers = _per_level(spec.layers_per_block, levels)

    def layer(home: str, index: int, level: int, in_channels: int, depth: int | None) -> None:
        table[f"{home}.resnets.{index}"] = Block("resnet", in_channels, channels[level], 0)
        if depth is not None:
            attention(home, index, level, depth)

    def attention(home: str, index: int, level: int, depth: int) -> None:
        width = channels[level]
        table[f"{home}.attentions.{index}"] = Block("attention", width, width, heads[level])
        for number in range(depth):
            name = f"{home}.attentions.{index}.transformer_blocks.{number}"
            table[name] = Block("transformer_block", width, width, heads[level])

    for level in range(levels):
        depths = spec.down_depths[level]
        for index in range(layers[level]):
            before = channels[max(level - 1, 0)] if index == 0 else channels[level]
            layer(f"down_blocks.{level}", index, level, before, depths[index] if depths else None)
    if spec.mid_block_type is not None:
        layer("mid_block", 0, levels - 1, channels[-1], None)
    if spec.mid_block_type == "UNetMidBlock2DCrossAttn":
        attention("mid_block", 0, levels - 1, spec.mid_depth)
        layer("mid_block", 1, levels - 1, channels[-1], None)
    for place in range(levels):
        level = levels - 1 - place
        depths = spec.up_depths[place]
        for index in range(layers[level] + 1):
            before = channels[min(level + 1, levels - 1)] if index == 0 else channels[level]
            skip = channels[max(level - 1, 0)] if index == layers[level] else channels[level]
            layer(f"up_blocks.{place}", index, level, before + skip, depths[index] if depths else None)
    return table


# How many of how many transformer blocks of a student's attention layer -> the teacher's indices.
Keep = Callable[[str, int, int], Sequence[int]]


def match_layers(student: UNetSpec, teacher: UNetSpec, keep: Keep, name: str = "custom", source: str = "") -> LayerMap:
    """Return the map whose transformer blocks `keep` chooses; resnets and attention layers follow from the skips.

    Where a level of the student has fewer layers, it keeps the first ones, and on the way up the last one, which alone
    has the width of the next level's skip connection. Blocks that the teacher does not have are new.

    Args:
        student: Its architecture.
        teacher: Its architecture.
        keep: (attention layer, blocks of the student, blocks of the teacher) -> the teacher's indices, which may be
            fewer than the student has blocks; the rest are new.
        name: What the map is called.
        source: Why these blocks.

    Raises:
        InvalidValue: The two do not fit each other.
    """
    mine, theirs = block_table(student), block_table(teacher)
    blocks: dict[str, str] = {}
    for block in mine:
        if ".transformer_blocks." in block:
            continue
        origin = _counterpart(block, mine, theirs)
        if origin is None:
            continue
        blocks[block] = origin
        depth, full = _depth(mine, block), _depth(theirs, origin)
        chosen = list(keep(block, depth, full)) if depth and full else []
        for number, index in enumerate(chosen):
            blocks[f"{block}.transformer_blocks.{number}"] = f"{origin}.transformer_blocks.{index}"
    ordered = {block: blocks[block] for block in mine if block in blocks}
    new = tuple(block for block in mine if block not in blocks)
    result = LayerMap(name=name, source=source, blocks=ordered, new=new)
    result.check(student, teacher)
    return result


def keep_first(layer: str, count: int, full: int) -> Sequence[int]:
    """Keep the first blocks of an attention layer, as loading the teacher's weights by name does."""
    return range(min(count, full))


def keep_evenly(layer: str, count: int, full: int) -> Sequence[int]:
    """Keep blocks at equal distances, the first and the last among them (one alone: the first)."""
    kept = min(count, full)
    return [round(number * (full - 1) / max(kept - 1, 1)) for number in range(kept)]


def stretch(layer: str, count: int, full: int) -> Sequence[int]:
    """Let every block of a shallower teacher stand for a run of the student's, in order."""
    return [number * full // count for number in range(count)]


def _counterpart(block: str, mine: Iterable[str], theirs: Iterable[str]) -> str | None:
    """Return the teacher's layer for a student's resnet or attention layer: same place, the last one to the last."""
    container, _, number = block.rpartition(".")
    last, their_last = _size(mine, container) - 1, _size(theirs, container) - 1
    going_up = container.startswith("up_blocks.")
    index = their_last if going_up and int(number) == last else int(number)
    exists = index < their_last or (index == their_last and (not going_up or int(number) == last))
    return f"{container}.{index}" if exists else None


def _size(names: Iterable[str], container: str) -> int:
    """Return how many layers a container such as `up_blocks.0.resnets` has."""
    return sum(name.rpartition(".")[0] == container for name in names)


def _depth(names: Iterable[str], layer: str) -> int:
    return _size(names, f"{layer}.transformer_blocks")


def _index(block: str) -> int:
    return int(block.rpartition(".")[2])


def _per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * levels


def _spec_of_blocks(names: Sequence[str], teacher: UNetSpec) -> UNetSpec:
    """Return the U-Net that has exactly these blocks and shares everything else with the teacher."""
    levels = teacher.num_levels
    counts = tuple(_size(names, f"down_blocks.{level}.resnets") for level in range(levels))
    down = [_attention_depths(names, f"down_blocks.{level}", counts[level]) for level in range(levels)]
    up = []
    for place, count in enumerate(reversed(counts)):
        home = f"up_blocks.{place}"
        found = _size(names, f"{home}.resnets")
        if count == 0 or found != count + 1:
            raise InvalidValue(
                f"map.blocks.{home}.resnets", found, f"{count + 1}, one more than on the way down", "change"
            )
        up.append(_attention_depths(names, home, count + 1))
    downs: tuple[DownBlock, ...] = tuple("CrossAttnDownBlock2D" if depths else "DownBlock2D" for depths in down)
    ups: tuple[UpBlock, ...] = tuple("CrossAttnUpBlock2D" if depths else "UpBlock2D" for depths in up)
    down_depths, up_depths = tuple(map(_shortest, down)), tuple(map(_shortest, up))
    mirrored = all(
        isinstance(below, int) and (above == below or not depths)
        for below, above, depths in zip(down_depths[::-1], up_depths, up, strict=True)
    )
    return teacher.model_copy(
        update={
            "layers_per_block": _one(counts),
            "down_block_types": downs,
            "mid_block_type": _mid_block(names, down[-1]),
            "up_block_types": ups,
            "transformer_layers_per_block": down_depths,
            "reverse_transformer_layers_per_block": None if mirrored else up_depths,
        }
    )


def _attention_depths(names: Sequence[str], home: str, layers: int) -> tuple[int, ...]:
    """Return the transformer blocks of each attention layer of a block; empty without attention."""
    found = _size(names, f"{home}.attentions")
    if found not in (0, layers):
        raise InvalidValue(
            f"map.blocks.{home}.attentions", found, f"none, or one for each of {layers} resnets", "change"
        )
    return tuple(_depth(names, f"{home}.attentions.{index}") for index in range(found))


def _mid_block(names: Sequence[str], last_depths: tuple[int, ...]) -> MidBlock | None:
    """Return the mid block's type: two resnets around an attention layer, one resnet, or nothing."""
    resnets, attentions = _size(names, "mid_block.resnets"), _size(names, "mid_block.attentions")
    types: dict[tuple[int, int], MidBlock | None] = {
        (0, 0): None,
        (1, 0): "UNetMidBlock2D",
        (2, 1): "UNetMidBlock2DCrossAttn",
    }
    if (resnets, attentions) not in types:
        raise InvalidValue(
            "map.blocks.mid_block",
            f"{resnets} resnets, {attentions} attention layers",
            "0 and 0, 1 and 0, or 2 and 1",
            "change",
        )
    depth = _depth(names, "mid_block.attentions.0")
    expected = (last_depths or (1,))[0]
    if attentions and depth != expected:
        raise InvalidValue(
            "map.blocks.mid_block.attentions.0", depth, f"{expected} blocks, as in the last down block", "change one"
        )
    return types[resnets, attentions]


def _shortest(depths: tuple[int, ...]) -> int | tuple[int, ...]:
    """Write a level's depths as configs do: one number where all are equal, 1 where there is no attention."""
    return _one(depths) if depths else 1


def _one(values: tuple[int, ...]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else values
