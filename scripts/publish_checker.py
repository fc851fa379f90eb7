r"""Put a run's checker into the package: weights in half precision, config, and the record of hashes and provenance.

    python scripts/publish_checker.py run:scene-checker-cpu

What is published is frozen: scores of two different checkers do not compare, so a new one gets new results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import vega_diffusion
from vega_diffusion.errors import run_script
from vega_diffusion.models.checker import read_checker, write_checker
from vega_diffusion.models.export import new_folder
from vega_diffusion.training.components import locate
from vega_diffusion.training.publish import component_record

FOLDER = Path(vega_diffusion.__file__).parent / "assets" / "checker"


def publish(reference: str, folder: Path) -> str:
    """Write the checker's folder and return one line that names it.

    Args:
        reference: `run:NAME`.
        folder: Where it goes; an older folder there is replaced at the end.

    Raises:
        VegaError: The weights are not there or do not fit, or the folder cannot be written.
    """
    checker = read_checker(locate(reference, "checker").parent)  # with the names that it was trained with
    record: dict[str, Any] = component_record(reference, "checker")
    with new_folder(folder) as place:
        sha256 = write_checker(place, checker, torch.float16, record)
    return f"{folder} sha256 {sha256}"


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", help="the run: run:NAME")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    given = parser.parse_args(argv)
    return run_script(lambda: publish(given.reference, given.folder))


if __name__ == "__main__":
    sys.exit(main())
