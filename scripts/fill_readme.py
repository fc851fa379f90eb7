"""Fills README's table of figures from the result files; `make docs` runs it, and a test holds the two together."""

from __future__ import annotations

import sys
from pathlib import Path

from vega_diffusion.benchmarks.report import read_results
from vega_diffusion.benchmarks.tables import fill

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Rewrite README.md in place where a figure changed."""
    readme = ROOT / "README.md"
    results = ROOT / "benchmarks" / "results"
    text = readme.read_text()
    filled = fill(text, read_results(results) if results.is_dir() else [])
    if filled != text:
        readme.write_text(filled)
        print("README.md: tables filled again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
