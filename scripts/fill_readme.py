"""Fills README's tables and grid, and those of docs/distillation.md and docs/adapting.md, from result files and ledger.

`make docs` runs it; tests hold README together with the files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vega_diffusion.benchmarks.experiment_report import MATRIX, SEEDS, draw_experiment, experiment_tables
from vega_diffusion.benchmarks.figures import draw_sizes, draw_speed
from vega_diffusion.benchmarks.report import read_results
from vega_diffusion.benchmarks.tables import bars_table, between, fill
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
GRID = """![Fifteen prompts and what vega-mini draws for them](docs/images/grid.png)

Fixed prompts, seed 0 for all, none chosen by eye (`scripts/draw_grid.py`).
"""


def main() -> int:
    """Rewrite README.md in place where a figure changed."""
    readme = ROOT / "README.md"
    results = ROOT / "benchmarks" / "results"
    text = readme.read_text()
    filled = fill(text, read_results(results) if results.is_dir() else [])
    grid = GRID if (ROOT / "docs" / "images" / "grid.png").exists() else ""
    filled = between(filled, GRID_BEGIN, GRID_END, grid)
    filled = between(filled, SIZES_BEGIN, SIZES_END, _draw_sizes(results))
    tests = read_ledger(ROOT / LEDGER)
    newest = newest_of_models(tests, (*EMBEDDED, *TEACHERS))
    scores = "\n".join(ledger_table(line) for line in newest.values())
    filled = between(filled, SCORES_BEGIN, SCORES_END, scores)
    if filled != text:
        readme.write_text(filled)
        print("README.md: tables filled again")
    _fill_experiment(results)
    _fill_adapting(results)
    return 0


def _draw_sizes(folder: Path) -> str:
    """Draw the figures of sizes and speeds, and return what shows them."""
    results = read_results(folder) if folder.is_dir() else []
    shown = ""
    sizes = [one for one in results if one.case == "parameters"]
    if sizes:
        draw_sizes(max(sizes, key=lambda one: one.finished), ROOT / "docs" / "images" / "sizes.png")
        shown += "![Parameters and work of SD 1.5, Vega, SSD-1B and SDXL](docs/images/sizes.png)\n\n"
    speeds = [one for one in results if SPEED.fullmatch(one.case)]
    if speeds:
        machine = max(speeds, key=lambda one: one.finished).hardware
        own = sorted((one for one in speeds if one.hardware == machine), key=lambda one: one.case)
        draw_speed(own, ROOT / "docs" / "images" / "speed.png")
        shown += (
            "![Seconds of a picture by Vega and larger models](docs/images/speed.png)\n\n"
            f"Random weights on {machine.cores} cores of {machine.accelerator or machine.processor}; one thread.\n"
        )
    return shown


def _fill_adapting(folder: Path) -> None:
    page = ROOT / "docs" / "adapting.md"
    text = page.read_text()
    results = [one for one in read_results(folder) if one.case in ADAPTING_CASES] if folder.is_dir() else []
    filled = between(text, ADAPTING_BEGIN, ADAPTING_END, bars_table(results) + "\n" if results else "")
    if filled != text:
        page.write_text(filled)
        print("docs/adapting.md: table filled again")


def _fill_experiment(folder: Path) -> None:
    spec = ExperimentSpec.read(ROOT / EXPERIMENT)
    results = [one for one in read_results(folder) if one.case in (MATRIX, SEEDS)] if folder.is_dir() else []
    page = ROOT / "docs" / "distillation.md"
    text = page.read_text()
    tables = experiment_tables(spec, results)
    if tables:
        draw_experiment(spec, results, ROOT / "docs" / FIGURE)
        tables = f"![Losses and scores of all configurations]({FIGURE})\n\n{tables}\n"
    filled = between(text, EXPERIMENT_BEGIN, EXPERIMENT_END, tables)
    if filled != text:
        page.write_text(filled)
        print("docs/distillation.md: tables filled again")


if __name__ == "__main__":
    sys.exit(main())
