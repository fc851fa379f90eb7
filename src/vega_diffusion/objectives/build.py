"""From an objective's spec to the objective."""

from __future__ import annotations

from typing import assert_never

from torch import nn

from vega_diffusion.objectives.autoencoding import Autoencoding
from vega_diffusion.objectives.protocol import Objective
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.objective import AutoencodingSpec, DenoisingSpec, ObjectiveSpec, SceneTextSpec


def build_objective(spec: ObjectiveSpec, model: ModelSpec, frozen: dict[str, nn.Module]) -> Objective:
    """Return the objective that a spec describes.

    Args:
        spec: Which loss, with its weights.
        model: The architecture that is trained (prediction type, noise schedule).
        frozen: Component -> module that helps and does not learn.
    """
    match spec:
        case AutoencodingSpec():
            return Autoencoding(spec)
        case DenoisingSpec() | SceneTextSpec():
            raise NotImplementedError(spec.kind)
        case _:
            assert_never(spec)


def build_heads(spec: ObjectiveSpec, model: ModelSpec, seed: int) -> nn.Module | None:
    """Return the modules that learn with the student and are thrown away after the run, or None."""
    match spec:
        case AutoencodingSpec() | DenoisingSpec():
            return None
        case SceneTextSpec():
            raise NotImplementedError(spec.kind)
        case _:
            assert_never(spec)
