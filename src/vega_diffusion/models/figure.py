"""The block diagram of a U-Net, beside the larger one it was cut from. Drawing only: sizes come from `measure`.

A panel is a block, a row in it one layer (a ResNet block and its attention), a cell one transformer block. Cells of the
reference that the model lacks are drawn in another colour.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable, VegaError
from vega_diffusion.models.measure import BlockSize, measure_blocks
from vega_diffusion.specs.architecture import ModelSpec, UNetSpec

FORMATS = (".png", ".svg", ".pdf")
RESNET, TRANSFORMER, DROPPED, SAMPLER, PANEL, INK, SOFT = (
    "#8a94a6",
    "#2f6fdb",
    "#f6c9c0",
    "#c9b458",
    "#f5f6f8",
    "#1d2330",
    "#6a7383",
)
_CELL_WIDTH, _CELL_HEIGHT, _GAP, _MARGIN, _HEAD = 1.0, 0.82, 0.14, 0.45, 1.25
_RIGHT_GAP, _LEVEL_GAP = 5.0, 0.8


@dataclass(frozen=True)
class Row:
    """One layer of a block: has the model its ResNet block, and how many transformer blocks of how many."""

    has_resnet: bool
    depth: int
    reference_depth: int
    reference_has_resnet: bool = True


@dataclass(frozen=True)
class Panel:
    """One block: its rows, what it is called, and whether it changes the resolution afterwards."""

    name: str
    rows: tuple[Row, ...]
    channels: int
    scale: int
    parameters: int
    reference_parameters: int
    sampler: str = ""

    @property
    def height(self) -> float:
        """Height in cell units, heading included."""
        return _HEAD + len(self.rows) * (_CELL_HEIGHT + _GAP) + _MARGIN


def is_cut_from(spec: UNetSpec, reference: UNetSpec) -> bool:
    """Whether the reference has every layer that the model has, so that the two can share one diagram."""
    if spec.block_out_channels != reference.block_out_channels:
        return False
    own, other = (measured.down_block_types + measured.up_block_types for measured in (spec, reference))
    if own != other:
        return False
    pairs = list(zip(spec.down_depths + spec.up_depths, reference.down_depths + reference.up_depths, strict=True))
    pairs.append(((spec.mid_depth,), (reference.mid_depth,)))
    return all(
        len(mine) <= len(theirs) and all(depth <= full for depth, full in zip(mine, theirs, strict=False))
        for mine, theirs in pairs
    )


def panels(spec: UNetSpec, reference: UNetSpec) -> dict[str, Panel]:
    """Return what to draw, by block name, in the order of the forward pass; the reference's blocks set the frame."""
    own = {block.name: block for block in measure_blocks(spec)}
    full = {block.name: block for block in measure_blocks(reference)}
    levels = spec.num_levels
    result: dict[str, Panel] = {}
    for name in full:
        if not name.startswith(("down_blocks.", "mid_block", "up_blocks.")):
            continue
        kind, _, number = name.partition(".")
        level = {"down_blocks": int(number or 0), "mid_block": levels - 1, "up_blocks": levels - 1 - int(number or 0)}
        last = {"down_blocks": levels - 1, "up_blocks": 0, "mid_block": levels - 1}[kind] == level[kind]
        result[name] = Panel(
            name=name,
            rows=_rows(own.get(name), full[name]),
            channels=spec.block_out_channels[level[kind]],
            scale=2 ** level[kind],
            parameters=own[name].parameters if name in own else 0,
            reference_parameters=full[name].parameters,
            sampler="" if last else {"down_blocks": "down", "up_blocks": "up"}[kind],
        )
    return result


def _rows(own: BlockSize | None, full: BlockSize) -> tuple[Row, ...]:
    resnets = own.resnets if own else 0
    depths = own.transformer_depths if own else ()
    rows: list[Row] = []
    for index in range(full.resnets):
        reference_depth = full.transformer_depths[index] if index < len(full.transformer_depths) else 0
        depth = depths[index] if index < len(depths) else 0
        rows.append(Row(index < resnets, depth, reference_depth))
    return tuple(rows)


def check_figure_path(path: Path) -> None:
    """Refuse a file that cannot be drawn, before any work is done.

    Raises:
        InvalidValue: Another kind of file.
        MissingFile: Its folder does not exist.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidValue("figure", str(path), f"a file name that ends in {', '.join(FORMATS)}", "rename it")
    if not path.parent.is_dir():
        raise MissingFile(f"figure: {str(path)!r} cannot be written (no such folder); make the folder first")


def draw_figure(spec: ModelSpec, reference: ModelSpec, path: Path) -> None:
    """Draw the model's U-Net with what it lacks of the reference's, and write the picture.

    Args:
        spec: The model.
        reference: What it was cut from; where the model is no part of it, the model is drawn alone.
        path: A PNG, SVG or PDF file; replaced when it exists.

    Raises:
        InvalidValue: Another kind of file.
        MissingFile: Its folder does not exist.
        Unavailable: matplotlib is not installed.
        VegaError: The file cannot be written; an older one is untouched.
    """
    check_figure_path(path)
    if not is_cut_from(spec.unet, reference.unet):
        reference = spec
    figure = _Drawing(spec, reference).figure
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=160, facecolor="white")
        os.replace(part, path)
    except OSError as error:
        raise VegaError(f"figure: {str(path)!r} cannot be written ({error.strerror}); choose another place") from error
    finally:
        part.unlink(missing_ok=True)


def _millions(count: int) -> str:
    if count == 0:
        return "absent"
    return f"{count / 1e6:,.1f} M" if count < 1e9 else f"{count / 1e6:,.0f} M"


class _Drawing:
    """One matplotlib figure in cell units, y downwards."""

    def __init__(self, spec: ModelSpec, reference: ModelSpec) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise Unavailable(
                "figure: matplotlib is not installed; install the extra: pip install 'vega-diffusion[plots]'"
            ) from error
        self.spec, self.reference = spec, reference
        self.alone = reference is spec or spec.unet.same_network(reference.unet)
        self.panels = panels(spec.unet, reference.unet)
        cells = max(
            1 + row.reference_depth + bool(panel.sampler) for panel in self.panels.values() for row in panel.rows
        )
        self.width = max(cells, 9) * (_CELL_WIDTH + _GAP) + 2 * _MARGIN
        self.total_width = 2 * self.width + _RIGHT_GAP
        levels = spec.unet.num_levels
        pairs = [(f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}") for level in range(levels)]
        self.tops = [4.4]
        for pair in pairs:
            self.tops.append(self.tops[-1] + max(self.panels[name].height for name in pair) + _LEVEL_GAP)
        self.total_height = self.tops[-1] + (self.panels["mid_block"].height if "mid_block" in self.panels else 1) + 3.6
        self.figure = Figure(figsize=(self.total_width * 0.45, self.total_height * 0.45))
        self.axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(-1.2, self.total_width + 1.2)
        self.axes.set_ylim(self.total_height, 0)
        self.axes.axis("off")
        self._titles()
        for level, (down, up) in enumerate(pairs):
            self._level(level, down, up)
        self._mid()
        self._legend()

    def _text(self, x: float, y: float, text: str, size: float = 10, **style: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, **({"color": INK, "va": "center"} | style))

    def _titles(self) -> None:
        total = sum(block.parameters for block in measure_blocks(self.spec.unet))
        self._text(0, 1.0, f"U-Net of {self.spec.name}", 20, weight="bold")
        line = f"{total:,} parameters"
        if not self.alone:
            full = sum(block.parameters for block in measure_blocks(self.reference.unet))
            line += f", {total / full:.0%} of the {full:,} of {self.reference.name}"
        blocks = sum(row.depth for panel in self.panels.values() for row in panel.rows)
        resnets = sum(row.has_resnet for panel in self.panels.values() for row in panel.rows)
        self._text(0, 2.15, f"{line}; {blocks} transformer blocks, {resnets} ResNet blocks", 12, color=SOFT)
        self._text(self.width / 2, 3.35, "noisy latents in", 11, ha="center")
        self._text(self.width * 1.5 + _RIGHT_GAP, 3.35, "predicted noise out", 11, ha="center")

    def _arrow(self, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
        look = {"arrowstyle": "-|>", "color": SOFT, "lw": 1.4, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13} | style
        self.axes.annotate("", xy=end, xytext=start, arrowprops=look)

    def _level(self, level: int, down: str, up: str) -> None:
        left, right, top = self.panels[down], self.panels[up], self.tops[level]
        # Both stand on one line, so that the skip connection runs straight.
        height = max(left.height, right.height)
        self._panel(left, 0, top + height - left.height)
        self._panel(right, self.width + _RIGHT_GAP, top + height - right.height)
        middle = top + height - min(left.height, right.height) / 2
        self._arrow(
            (self.width + 0.15, middle),
            (self.width + _RIGHT_GAP - 0.15, middle),
            linestyle=(0, (4, 3)),
            color="#a6aebb",
        )
        self._text(self.width + _RIGHT_GAP / 2, middle - 0.45, "skip", 9, ha="center", color=SOFT)
        bottom = top + height
        if level == 0:
            self._arrow((self.width / 2, 3.65), (self.width / 2, bottom - left.height - 0.08))
            x = self.width * 1.5 + _RIGHT_GAP
            self._arrow((x, bottom - right.height - 0.08), (x, 3.65))
        if level + 1 < self.spec.unet.num_levels:
            names = (f"down_blocks.{level + 1}", f"up_blocks.{self.spec.unet.num_levels - 2 - level}")
            frame = max(self.panels[name].height for name in names)
            ends = [self.tops[level + 1] + frame - self.panels[name].height for name in names]
            self._arrow((self.width / 2, bottom + 0.08), (self.width / 2, ends[0] - 0.08))
            x = self.width * 1.5 + _RIGHT_GAP
            self._arrow((x, ends[1] - 0.08), (x, bottom + 0.08))

    def _mid(self) -> None:
        bottom, left, right = self.tops[-1] - _LEVEL_GAP, self.width / 2, self.width * 1.5 + _RIGHT_GAP
        style = {"color": SOFT, "lw": 1.4, "solid_capstyle": "butt"}
        panel = self.panels.get("mid_block")
        if panel is None:
            low = bottom + 1.0
            self.axes.plot([left, left, right], [bottom + 0.08, low, low], **style)
            self._arrow((right, low), (right, bottom + 0.08))
            self._text(self.total_width / 2, low + 0.5, "no mid block", 10, ha="center", color=SOFT)
            return
        x, middle = (self.total_width - self.width) / 2, self.tops[-1] + 0.5 + panel.height / 2
        self._panel(panel, x, self.tops[-1] + 0.5)
        self.axes.plot([left, left], [bottom + 0.08, middle], **style)
        self._arrow((left, middle), (x - 0.05, middle))
        self.axes.plot([x + self.width + 0.05, right], [middle, middle], **style)
        self._arrow((right, middle), (right, bottom + 0.08))

    def _panel(self, panel: Panel, x: float, y: float) -> None:
        from matplotlib.patches import FancyBboxPatch

        box = FancyBboxPatch(
            (x, y),
            self.width,
            panel.height,
            boxstyle="round,pad=0,rounding_size=0.35",
            facecolor=PANEL,
            edgecolor="#d5d9e0",
            lw=1.2,
        )
        self.axes.add_patch(box)
        scale = "full resolution" if panel.scale == 1 else f"1/{panel.scale} resolution"
        self._text(x + _MARGIN, y + 0.42, panel.name, 11.5, weight="bold")
        self._text(x + _MARGIN, y + 0.92, f"{panel.channels} channels, {scale}", 8.5, color=SOFT)
        self._text(x + self.width - _MARGIN, y + 0.42, _millions(panel.parameters), 11.5, weight="bold", ha="right")
        if not self.alone:
            full = f"{self.reference.name} {_millions(panel.reference_parameters)}"
            self._text(x + self.width - _MARGIN, y + 0.92, full, 8.5, color=SOFT, ha="right")
        for index, row in enumerate(panel.rows):
            last = index == len(panel.rows) - 1
            self._row(row, x + _MARGIN, y + _HEAD + index * (_CELL_HEIGHT + _GAP), panel.sampler if last else "")

    def _row(self, row: Row, x: float, y: float, sampler: str) -> None:
        self._cell(x, y, RESNET if row.has_resnet else DROPPED, "R", row.has_resnet)
        for index in range(row.reference_depth):
            x += _CELL_WIDTH + _GAP
            self._cell(x, y, TRANSFORMER if index < row.depth else DROPPED, "T", index < row.depth)
        if sampler:
            x += _CELL_WIDTH + _GAP
            self._cell(x, y, SAMPLER, "\N{DOWNWARDS ARROW}" if sampler == "down" else "\N{UPWARDS ARROW}", True)

    def _cell(self, x: float, y: float, colour: str, letter: str, is_kept: bool) -> None:
        from matplotlib.patches import FancyBboxPatch

        cell = FancyBboxPatch(
            (x, y),
            _CELL_WIDTH,
            _CELL_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.14",
            facecolor=colour,
            edgecolor="none" if is_kept else "#e08d7c",
            linestyle="-" if is_kept else (0, (2, 1.5)),
            lw=0.9,
        )
        self.axes.add_patch(cell)
        text = {"color": "white", "weight": "bold"} if is_kept else {"color": "#c2634f"}
        self._text(x + _CELL_WIDTH / 2, y + _CELL_HEIGHT / 2, letter, 9, ha="center", **text)

    def _legend(self) -> None:
        entries = [(RESNET, "R", "ResNet block", True), (TRANSFORMER, "T", "transformer block", True)]
        entries.append((SAMPLER, "\N{UPWARDS ARROW}", "down / upsampling", True))
        if not self.alone:
            entries.append((DROPPED, "T", f"in {self.reference.name}, not in {self.spec.name}", False))
        x, y = 0.0, self.total_height - 2.1
        for colour, letter, words, is_kept in entries:
            self._cell(x, y, colour, letter, is_kept)
            self._text(x + 1.25, y + _CELL_HEIGHT / 2, words, 10.5)
            x += 2.6 + 0.27 * len(words)
        note = "R and T are one block each, in the order of the forward pass; text reaches every T by cross-attention."
        if not self.alone:
            note += " Kept blocks are drawn first in a row: how many, not which."
        self._text(0, y + 1.45, note, 9, color=SOFT)
