"""What tests of training on one's own pictures share: from a recipe's file to its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.run import frozen_components
from vega_diffusion.training.sources import build_source


def source_of(recipe: Path, *changes: str) -> Any:
    """Return the samples of a recipe of vega-mini, after some changes."""
    read = TrainRecipe.read(recipe, changes)
    spec = load_spec(resolve_model("vega-mini"))
    return build_source(read, spec, torch.device("cpu"), frozen_components(read, spec))
