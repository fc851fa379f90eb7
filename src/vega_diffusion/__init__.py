"""vega-diffusion: compact, distilled SDXL text-to-image models.

What lives here: the public names, loaded on first use, so that `import vega_diffusion` costs no torch import.
What does not: any logic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vega_diffusion.errors import InvalidValue, VegaError
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.specs.request import GenerateRequest

_LAZY = {
    "Engine": "vega_diffusion.inference.engine",
    "GenerateRequest": "vega_diffusion.specs.request",
    "InvalidValue": "vega_diffusion.errors",
    "TrainRecipe": "vega_diffusion.specs.recipe",
    "VegaError": "vega_diffusion.errors",
}

__all__ = ["Engine", "GenerateRequest", "InvalidValue", "TrainRecipe", "VegaError", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
