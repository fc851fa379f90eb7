"""Compare U-Nets by their loss on the same samples and the same noise, as JSON: one line of a log, not a ruler.

    python scripts/denoising_loss.py recipes/vega-mini-denoise-cpu.toml vega-mini run:vega-mini-denoise-cpu

Samples come from the recipe's own data (training scenes, at positions that no run reaches), so the number tells how far
training is and nothing about pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.errors import run_script
from vega_diffusion.objectives.build import build_objective
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import load_weights, locate
from vega_diffusion.training.run import build_parts
from vega_diffusion.training.sources import build_source

FIRST_POSITION = 50_000_000
SEED = 777


@torch.no_grad()
def losses(recipe: TrainRecipe, references: list[str], num_samples: int) -> str:
    """Return the mean loss of each U-Net over the same samples.

    Args:
        recipe: Data, objective, and the other components' weights.
        references: U-Nets: `run:NAME`, a known model, a folder or a file.
        num_samples: How many samples; a multiple of the recipe's micro batch.

    Raises:
        VegaError: Weights are not there or do not fit.
    """
    parts, size = build_parts(recipe), recipe.micro_batch_size
    source = build_source(recipe, parts.spec, torch.device("cpu"), parts.frozen)
    objective = build_objective(recipe.objective, parts.spec, parts.frozen)
    unet, found = parts.student.get_submodule("unet"), {}
    for reference in references:
        load_weights(unet, "unet", locate(reference, "unet"))
        total = 0.0
        for start in range(FIRST_POSITION, FIRST_POSITION + num_samples, size):
            positions = range(start, start + size)
            loss = objective(parts.student, source.load(positions), PositionRng(SEED, positions))
            total += float(loss.total) * size
        found[reference] = round(total / num_samples, 5)
    return json.dumps({"num_samples": num_samples, "loss": found})


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, measure, print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("unets", nargs="+", help="run:NAME, a known model, a folder or a file")
    parser.add_argument("--num-samples", type=int, default=512, help="default: 512")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the recipe")
    given = parser.parse_args(argv)
    return run_script(lambda: losses(TrainRecipe.read(given.recipe, given.set), given.unets, given.num_samples))


if __name__ == "__main__":
    sys.exit(main())
