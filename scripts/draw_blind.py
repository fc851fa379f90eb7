"""Draw the ten pictures that a judge names without knowing the prompts; `benchmarks blind-naming` scores the answers.

python scripts/draw_blind.py benchmarks/blind-naming
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vega_diffusion.benchmarks.blind_naming import draw
from vega_diffusion.errors import run_script


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, draw, print the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write; nothing may be there yet")
    parser.add_argument("--model", default="vega-mini", help="a name or a folder (default: vega-mini)")
    arguments = parser.parse_args(argv)
    return run_script(lambda: draw(arguments.model, arguments.folder))


if __name__ == "__main__":
    sys.exit(main())
