"""Fills README's tables and grid, and those of docs, from result files and ledger.

`make docs` runs it; tests hold README together with the files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vega_diffusion.benchmarks.experiment_figure import draw_experiment
from vega_diffusion.benchmarks.experiment_report import (
    MATRIX,
    SEEDS,
    SO_FAR,
    experiment_tables,
    steps_table,
)
from vega_diffusion.benchmarks.figures import draw_sizes, draw_speed
from vega_diffusion.benchmarks.headlines import BEGIN as HEADLINES_BEGIN
from vega_diffusion.benchmarks.headlines import END as HEADLINES_END
from vega_diffusion.benchmarks.headlines import headlines_table
from vega_diffusion.benchmarks.report import Result, read_results
from vega_diffusion.benchmarks.tables import BEGIN, END, bars_table, between
from vega_diffusion.evaluation.ledger import LEDGER, newest_of_models, read_ledger
from vega_diffusion.evaluation.report import ledger_table
from vega_diffusion.models.find import EMBEDDED, TEACHERS
from vega_diffusion.specs.experiment import ExperimentSpec

ROOT = Path(__file__).parents[1]
GRID_BEGIN, GRID_END = "<!-- grid:begin (make docs) -->", "<!-- grid:end -->"
SIZES_BEGIN, SIZES_END = "<!-- sizes:begin (make docs) -->", "<!-- sizes:end -->"
SPEED = re.compile(r"speed-vega-torch-own-\d+-(tiny|full)")
SCORES_BEGIN, SCORES_END = "<!-- scores:begin (make docs) -->", "<!-- scores:end -->"
ADAPTING_BEGIN, ADAPTING_END = "<!-- adapting:begin (make docs) -->", "<!-- adapting:end -->"
ADAPTING_CASES = ("adaptation", "adapting-speed", "full-size-adapting")
EXPERIMENT, FIGURE = "benchmarks/experiments/distillation.toml", "images/distillation.png"
EXPERIMENT_BEGIN, EXPERIMENT_END = "<!-- experiment:begin (make docs) -->", "<!-- experiment:end -->"
STEPS_BEGIN, STEPS_END = "<!-- steps:begin (make docs) -->", "<!-- steps:end -->"
GRID = """![Fifteen prompts and what vega-mini draws for them](docs/images/grid.png)

Fixed prompts, seed 0 for all, none chosen by eye (`scripts/draw_grid.py`).
"""


def main() -> int:
    """Rewrite the pages in place where a figure changed."""
    folder = ROOT / "benchmarks" / "results"
    results = read_results(folder) if folder.is_dir() else []
    grid = GRID if (ROOT / "docs" / "images" / "grid.png").exists() else ""
    newest = newest_of_models(read_ledger(ROOT / LEDGER), (*EMBEDDED, *TEACHERS))
    _fill_page(
        "README.md",
        (GRID_BEGIN, GRID_END, grid),
        (SIZES_BEGIN, SIZES_END, _draw_sizes(results)),
        (SCORES_BEGIN, SCORES_END, "\n".join(ledger_table(line) for line in newest.values())),
        (HEADLINES_BEGIN, HEADLINES_END, headlines_table(results)),
    )
    _fill_page("docs/measurements.md", (BEGIN, END, bars_table(results)))
    adapting = [one for one in results if one.case in ADAPTING_CASES]
    _fill_page("docs/adapting.md", (ADAPTING_BEGIN, ADAPTING_END, bars_table(adapting)))
    _fill_page(
        "docs/distillation.md",
        (EXPERIMENT_BEGIN, EXPERIMENT_END, _draw_experiment(results)),
        (STEPS_BEGIN, STEPS_END, steps_table(results) + "\n"),
    )
    return 0


def _fill_page(name: str, *parts: tuple[str, str, str]) -> None:
    """Replace what stands between pairs of markers on a page."""
    page = ROOT / name
    text = filled = page.read_text()
    for begin, end, content in parts:
        filled = between(filled, begin, end, content)
    if filled != text:
        page.write_text(filled)
        print(f"{name}: filled again")


def _draw_sizes(results: list[Result]) -> str:
    """Draw the figures of sizes and speeds, and return what shows them."""
    shown = ""
    sizes = [one for one in results if one.case == "parameters"]
    if sizes:
        draw_sizes(max(sizes, key=lambda one: one.finished), ROOT / "docs" / "images" / "sizes.png")
        shown += "![Parameters and work of SD 1.5, Vega, SSD-1B and SDXL](docs/images/sizes.png)\n\n"
    speeds = [one for one in results if SPEED.fullmatch(one.case)]
    # The newest of a processor and of a GPU, by case.
    newest = {
        (one.hardware.accelerator is not None, one.case): one for one in sorted(speeds, key=lambda one: one.finished)
    }
    if newest:
        order = sorted(
            newest.values(), key=lambda one: (bool(one.hardware.accelerator), one.measurement.summary["size_px"])
        )
        draw_speed(order, ROOT / "docs" / "images" / "speed.png")
        shown += (
            "![Seconds of a picture by Vega and larger models](docs/images/speed.png)\n\n"
            "Random weights; processors by one thread.\n"
        )
    return shown


def _draw_experiment(results: list[Result]) -> str:
    """Draw the figure of the distillation experiment, and return what shows it and its tables."""
    spec = ExperimentSpec.read(ROOT / EXPERIMENT)
    of_experiment = [one for one in results if one.case in (MATRIX, SO_FAR, SEEDS)]
    tables = experiment_tables(spec, of_experiment)
    if not tables:
        return ""
    draw_experiment(spec, of_experiment, ROOT / "docs" / FIGURE)
    return f"![Losses and scores of all configurations]({FIGURE})\n\n{tables}\n"


if __name__ == "__main__":
    sys.exit(main())
