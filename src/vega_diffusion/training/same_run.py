"""Whether a saved state is of the run that wants to go on from it."""

from __future__ import annotations

from collections.abc import Mapping

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.state import RunState


def check_same_run(
    state: RunState, recipe: TrainRecipe, source: str, inputs: Mapping[str, str], init_from: str | None
) -> None:
    """Check that nothing has changed that decided the steps of a state.

    Args:
        state: What the run saved.
        recipe: The run's recipe now.
        source: Fingerprint of its samples now.
        inputs: Names and hashes of what else decides it now.
        init_from: Where first weights are to come from now.

    Raises:
        VegaError: The state belongs to another recipe, other data or other frozen weights.
    """
    changed = recipe.changed_keys(state.extra["identity"])
    new_run = "go back to the old value, or start another run with --run-name"
    if changed:
        old, new = state.extra["identity"].get(changed[0]), recipe.identity().get(changed[0])
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise VegaError(f"{changed[0]}: changed from {old!r} to {new!r} since the run was saved{more}; {new_run}")
    if state.extra["source"] != source:
        raise VegaError(f"data: other samples than when the run was saved; {new_run}")
    if state.extra["inputs"] != inputs:
        names = dict(state.extra["inputs"].items() ^ inputs.items())
        raise VegaError(f"model.weights.{min(names)}: other weights than before; {new_run}")
    if init_from is not None and init_from != state.extra["init_from"]:
        raise VegaError(f"--init-from: the run is already at step {state.step}; leave it out or use --run-name")
    if state.step > recipe.steps:
        raise InvalidValue("steps", recipe.steps, f"at least {state.step}, the steps done", "raise it")
