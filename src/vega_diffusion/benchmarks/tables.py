"""The table of every goal in docs/measurements.md, made from result files and from nothing else.

What lives here: text from results. What does not: measuring, and any number written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from vega_diffusion.benchmarks.report import Bar, Hardware, Result

BEGIN, END = "<!-- results:begin (make docs) -->", "<!-- results:end -->"


def bars_table(results: Sequence[Result]) -> str:
    """Return one Markdown table a machine: every bar with what was measured, the limit and the command."""
    parts: list[str] = []
    for name in sorted({result.hardware.name for result in results}):
        of_machine = [result for result in results if result.hardware.name == name and result.measurement.bars]
        if not of_machine:
            continue
        hardware = of_machine[0].hardware
        parts += [f"**{machine_title(hardware)}**, {hardware.memory_gib:.0f} GiB of memory", ""]
        parts += ["| what | measured | goal | met | on | command |", "|---|---|---|---|---|---|"]
        parts += [row(bar, result) for result in of_machine for bar in result.measurement.bars]
        parts.append("")
    return "\n".join(parts)


def machine_title(hardware: Hardware) -> str:
    """Return what a reader is told about a machine."""
    known = f" ({hardware.instructions})" if hardware.instructions else ""
    cores = "1 core" if hardware.cores == 1 else f"{hardware.cores} cores"
    return hardware.accelerator or f"{cores} of {hardware.processor}{known}"


def row(bar: Bar, result: Result) -> str:
    """Return one line of the table."""
    sign = "<=" if bar.better == "lower" else ">="
    met = "yes" if bar.met else "**no**"
    return (
        f"| {bar.what} | {number(bar.measured)} {bar.unit} | {sign} {number(bar.limit)} {bar.unit} "
        f"| {met} | {result.finished[:10]} | `{result.command}` |"
    )


def number(value: float) -> str:
    """Return a value with three significant digits but at most four decimals, and without an exponent."""
    size = abs(value)
    digits = 2 - floor(log10(size)) if size > 0 else 0
    text = f"{value:.{min(max(digits, 0), 4)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def between(text: str, begin: str, end: str, content: str) -> str:
    """Return `text` with what stands between two markers replaced by lines of their own.

    Raises:
        ValueError: A marker is missing.
    """
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"the markers {begin} and {end} are missing")
    return f"{before}{first}\n{content}{last}{after}"
