"""Progressive removal: a recipe with stages as the chain of recipes it stands for, each student carved from the last.

Steps of teachers count over the whole chain, so that a succession may span stages. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vega_diffusion.specs.distillation import DistillationSpec, TeacherSpec
from vega_diffusion.specs.known_maps import check_joined
from vega_diffusion.specs.recipe import TrainRecipe, apply_change, without_none


def expand(recipe: TrainRecipe, run_name: str) -> list[tuple[str, TrainRecipe]]:
    """Return (run name, recipe) of every stage in order; the last has the run's own name.

    Args:
        recipe: Without stages, it is the only element.
        run_name: Of the whole.

    Raises:
        InvalidValue: A stage makes no valid recipe; the message names the field.
    """
    surgery = recipe.model.surgery
    if not recipe.stages or surgery is None:
        return [(run_name, recipe)]
    chain: list[tuple[str, TrainRecipe]] = []
    source, maps, offset = surgery.teacher, [], 0
    for stage in recipe.stages:
        maps.append(stage.map)
        name = f"{run_name}.{stage.name}"
        one = _stage(recipe, stage.base, source, stage.map, maps, offset, stage.steps, stage.changes)
        chain.append((name, one))
        source, offset = f"run:{name}", offset + stage.steps
    maps.append(surgery.map)
    chain.append((run_name, _stage(recipe, recipe.model.base, source, surgery.map, maps, offset, recipe.steps)))
    return chain


def _stage(
    recipe: TrainRecipe,
    base: str,
    source: str,
    layers: str,
    maps: list[str],
    offset: int,
    steps: int,
    changes: Sequence[str] = (),
) -> TrainRecipe:
    """Return one stage as a recipe of its own."""
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude={"stages"}, exclude_unset=True)
    data["steps"] = steps
    data["model"] |= {"base": base, "surgery": {"teacher": source, "map": layers}}
    if isinstance(recipe.objective, DistillationSpec):
        joined = " + ".join(maps)
        check_joined(joined)  # now, not after the stages before have been trained
        data["objective"]["teachers"] = [
            one.model_dump(mode="json", exclude_unset=True) | _within(one, offset, steps) | {"map": joined}
            for one in recipe.objective.teachers
            if one.start_step < offset + steps and (one.stop_step is None or one.stop_step > offset)
        ]
    for change in changes:
        apply_change(data, change)
    return TrainRecipe.from_dict(without_none(data))


def _within(teacher: TeacherSpec, offset: int, steps: int) -> dict[str, int | None]:
    """Return a teacher's first and last step as a stage counts them."""
    stop = None if teacher.stop_step is None or teacher.stop_step >= offset + steps else teacher.stop_step - offset
    return {"start_step": max(0, teacher.start_step - offset), "stop_step": stop}
