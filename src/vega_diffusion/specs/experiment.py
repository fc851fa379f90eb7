"""An experiment as data: configurations of one recipe, run alike and compared. What runs them is in `benchmarks/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.base import read_toml
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.optimizer import StrictSpec
from vega_diffusion.specs.recipe import TrainRecipe

Phase = Literal["matrix", "seeds"]


class PhaseSpec(StrictSpec):
    """How long the runs of a phase are, in optimizer steps, and which seeds they have."""

    steps: PositiveInt
    seeds: tuple[NonNegativeInt, ...]


class ConfigurationSpec(StrictSpec):
    """One row of an experiment.

    Args:
        name: Part of the names of its runs.
        title: What it is, for tables and plots.
        changes: To the recipe, as `path=value`.
        recipe: Another recipe than the experiment's.
        matrix: Further changes in the first phase.
        seeds: Further changes in the second phase.
    """

    name: str
    title: str
    changes: tuple[str, ...] = ()
    recipe: str | None = None
    matrix: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()


class ExperimentSpec(StrictSpec):
    """Configurations that are compared in two phases.

    Args:
        recipe: What all have in common, a recipe's path from where the command runs.
        changes: To it, for all configurations.
        matrix: The first phase: every configuration, ranked by the held-out loss.
        seeds: The second phase: the best `best`, `baseline` and `always`, drawn and scored.
        baseline: Name of the configuration that the others are compared with.
        best: How many of the first phase go on.
        always: Names that go on whatever their rank.
        pairs: (A, B): finalists of which B less A is told, beside all less the baseline.
        teachers: Models that are scored beside the students: known names or `run:NAME`.
        held_out_samples: How many samples the held-out loss is of.
        recall: Whether teachers are asked once about each sample that a run takes, for all runs that take it.
        configurations: The rows.
    """

    recipe: str
    changes: tuple[str, ...] = ()
    matrix: PhaseSpec
    seeds: PhaseSpec
    baseline: str
    best: PositiveInt
    always: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    teachers: tuple[str, ...] = ()
    held_out_samples: PositiveInt = 2_048
    recall: bool = False
    configurations: tuple[ConfigurationSpec, ...]

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [one.name for one in self.configurations]
        for name in names:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or names.count(name) > 1:
                raise InvalidValue("configurations.name", name, "small letters, digits and dashes, once", "rename it")
        used = [("baseline", self.baseline), *(("always", name) for name in self.always)]
        for field, name in [*used, *(("pairs", name) for pair in self.pairs for name in pair)]:
            if name not in names:
                raise InvalidValue(field, name, f"one of: {', '.join(names)}", "name one")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an experiment file.

        Raises:
            MissingFile: The file cannot be read.
            InvalidValue: A key is unknown or a value not allowed.
        """
        return cls.from_dict(read_toml(path))

    def with_changes(self, changes: tuple[str, ...]) -> Self:
        """Return the experiment with further changes to the recipes of all runs."""
        return self.model_copy(update={"changes": (*self.changes, *changes)})

    def named(self, name: str) -> ConfigurationSpec:
        """Return the configuration of that name."""
        return next(one for one in self.configurations if one.name == name)

    def changes_of(self, configuration: ConfigurationSpec, phase: Phase, seed: int) -> tuple[str, ...]:
        """Return all changes of one run to its recipe."""
        own, of_phase = configuration.matrix if phase == "matrix" else configuration.seeds, self._phase(phase)
        changes = (*self.changes, f"steps={of_phase.steps}", *configuration.changes, *own, f"seed={seed}")
        if not self.recall:
            return changes
        recipe = TrainRecipe.read(Path(configuration.recipe or self.recipe), changes)
        if not isinstance(recipe.objective, DistillationSpec) or recipe.objective.fixed_samples is not None:
            return changes
        return (*changes, f"objective.fixed_samples={recipe.steps * recipe.batch_size}")

    def recipe_of(self, configuration: ConfigurationSpec, phase: Phase, seed: int) -> TrainRecipe:
        """Return the recipe of one run."""
        path = Path(configuration.recipe or self.recipe)
        return TrainRecipe.read(path, self.changes_of(configuration, phase, seed))

    def finalists(self, losses: dict[str, float]) -> tuple[str, ...]:
        """Return the names that go on, by the losses of the first phase, in the order of the file."""
        ranked = sorted((name for name in losses if name != self.baseline), key=lambda name: losses[name])
        chosen = {self.baseline, *self.always, *ranked[: self.best]}
        return tuple(one.name for one in self.configurations if one.name in chosen)

    def _phase(self, phase: Phase) -> PhaseSpec:
        return self.matrix if phase == "matrix" else self.seeds
