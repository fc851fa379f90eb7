"""Take the hundred pictures that a judge describes without knowing the prompts; `benchmarks blind-judging` scores them.

python scripts/draw_judging.py EVALUATION-OF-A-MODEL EVALUATION-OF-RENDERS benchmarks/blind-judging
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vega_diffusion.benchmarks.blind_judging import draw
from vega_diffusion.errors import run_script


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, write the pictures, print the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("generated", type=Path, help="folder of a finished evaluation on the dev split")
    parser.add_argument("rendered", type=Path, help="folder of the ceiling's renders of the same split")
    parser.add_argument("folder", type=Path, help="where to write; nothing may be there yet")
    given = parser.parse_args(argv)
    return run_script(lambda: draw(given.generated, given.rendered, given.folder))


if __name__ == "__main__":
    sys.exit(main())
