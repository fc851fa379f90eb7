"""Fills README's table of figures from the result files, its scores from the test ledger, its grid where there is one.

`make docs` runs it; tests hold README together with the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vega_diffusion.benchmarks.report import read_results
from vega_diffusion.benchmarks.tables import between, fill
from vega_diffusion.evaluation.ledger import LEDGER, read_ledger
from vega_diffusion.evaluation.report import ledger_table

ROOT = Path(__file__).parents[1]
GRID_BEGIN, GRID_END = "<!-- grid:begin (make docs) -->", "<!-- grid:end -->"
SCORES_BEGIN, SCORES_END = "<!-- scores:begin (make docs) -->", "<!-- scores:end -->"
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
    tests = read_ledger(ROOT / LEDGER)
    filled = between(filled, SCORES_BEGIN, SCORES_END, ledger_table(tests[-1]) if tests else "")
    if filled != text:
        readme.write_text(filled)
        print("README.md: tables filled again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
