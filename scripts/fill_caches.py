"""Fill the caches of a recipe's data (latents, encoded captions) by several processes, before the run that reads them.

    python scripts/fill_caches.py recipes/vega-mini-cuda.toml --processes 6

A run fills its caches itself; on a GPU one process spends its time on launching small kernels, several share the work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from vega_diffusion.errors import VegaError, run_script


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and fill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the recipe")
    given = parser.parse_args(argv)

    def work() -> Path:
        if given.processes > 1:
            _several(given)
        else:
            _fill(given.recipe, given.set, given.device)
        return given.recipe

    return run_script(work)


def _several(given: argparse.Namespace) -> None:
    command = [sys.executable, __file__, str(given.recipe), "--device", given.device]
    command += [part for change in given.set for part in ("--set", change)]
    running = [subprocess.Popen(command, stdout=sys.stderr) for _ in range(given.processes)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise VegaError(f"{given.recipe}: {sum(map(bool, codes))} of {len(codes)} processes failed; see above")


def _fill(recipe_file: Path, changes: list[str], device: str) -> None:
    from vega_diffusion.inference.components import choose_device
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.training.components import model_spec
    from vega_diffusion.training.run import frozen_components
    from vega_diffusion.training.sources import build_source

    recipe = TrainRecipe.read(recipe_file, changes)
    spec = model_spec(recipe)
    build_source(recipe, spec, choose_device(device), frozen_components(recipe, spec))


if __name__ == "__main__":
    sys.exit(main())
