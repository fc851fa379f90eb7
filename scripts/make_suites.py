"""Writes the prompt files of the suite `scenes` from their rules; the same rules give the same files.

python scripts/make_suites.py

A changed file has another hash, and scores on it cannot be compared with older ones: change rules rarely.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vega_diffusion.errors import run_script
from vega_diffusion.evaluation.compose import NUM_PROMPTS, compose_scenes
from vega_diffusion.evaluation.suites import suite_lines, suite_path


def write_suites(output: Path | None) -> str:
    """Write the files of both halves and return their paths, one a line."""
    paths = []
    for half in NUM_PROMPTS:
        path = suite_path("scenes", half)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            path = output / path.name
        path.write_text(suite_lines(compose_scenes(half)), encoding="utf-8")
        paths.append(str(path))
    return "\n".join(paths)


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, write the files, print their paths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="another folder than the package's")
    return run_script(lambda: write_suites(parser.parse_args(argv).output))


if __name__ == "__main__":
    sys.exit(main())
