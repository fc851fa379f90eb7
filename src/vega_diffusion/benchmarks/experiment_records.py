"""What is left of an experiment's runs when their folders are gone: a file a run, committed beside the experiment.

A record holds all that tables and comparisons read of a run, and what it was made of. One that was made of something
else than today's run would be is not taken, so an experiment of many hours may be spread over days and machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat

from vega_diffusion.benchmarks.report import Code, describe_hardware
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.evaluation.results import EvaluationResult
from vega_diffusion.evaluation.run_folder import Identity, write_whole
from vega_diffusion.evaluation.scores import PromptRates
from vega_diffusion.evaluation.suites import read_suite
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.evaluation import SuiteKind
from vega_diffusion.specs.recipe import TrainRecipe


class Score(Spec):
    """One finished evaluation, as far as an experiment reads it.

    Attributes:
        identity: What was evaluated, on what, by which checker and with which settings.
        overall: Mean of the six kinds.
        kinds: GenEval's six kinds.
        rows: Background, place, style, natural.
        styles: What the checker sees in pictures whose prompt names no style, as shares.
        passed: How many pictures of each prompt pass, a digit each, in the suite's order.
    """

    identity: Identity
    overall: float
    kinds: dict[SuiteKind, float]
    rows: dict[SuiteKind, float]
    styles: dict[str, float]
    passed: str

    @classmethod
    def of(cls, result: EvaluationResult, styles: Mapping[str, float]) -> Score:
        """Return what an evaluation of at most nine pictures a prompt says.

        Raises:
            VegaError: It did not ask the six kinds.
        """
        if result.overall is None:
            raise VegaError(f"{result.identity.model}: the evaluation asked only some kinds; evaluate it whole")
        suite = read_suite(result.identity.suite, result.identity.split).limited(result.identity.limit)
        passed = "".join(str(sum(result.prompts[prompt.id].passed)) for prompt in suite.prompts)
        assert len(passed) == len(result.prompts), "one digit a prompt"
        return cls(
            identity=result.identity,
            overall=result.overall,
            kinds=result.kinds,
            rows=result.rows,
            styles=dict(styles),
            passed=passed,
        )

    @property
    def prompts(self) -> dict[str, PromptRates]:
        """What became of each prompt, by id; which of a prompt's pictures passed is not known any more.

        Raises:
            VegaError: The suite has changed since.
        """
        suite = read_suite(self.identity.suite, self.identity.split)
        if suite.sha256 != self.identity.suite_sha256:
            raise VegaError(f"{self.identity.model}: scored on other prompts than {suite.name} has now; score it again")
        found = {}
        for prompt, digit in zip(suite.limited(self.identity.limit).prompts, self.passed, strict=True):
            count = int(digit)
            passed = (True,) * count + (False,) * (len(prompt.seeds) - count)
            found[prompt.id] = PromptRates(kind=prompt.kind, unseen=prompt.unseen, passed=passed)
        return found


class Record(Spec):
    """What is kept of a run, or of a teacher.

    Attributes:
        schema_version: Of this format.
        name: Of the file: phase, configuration and seed, or phase, "teacher" and its name.
        recipe: `TrainRecipe.identity()`; empty for a teacher.
        made_of: What it was made of, by name, with hashes: weights and maps.
        hardware: The machine that trained it; for a teacher, that measured it.
        commit: Of the code that measured and recorded it.
        finished: When, UTC.
        samples_per_s: Of training, median over the logged steps; 0 for a teacher.
        held_out_loss: On samples that no run has.
        score: On scenes-dev.
    """

    schema_version: Literal[1] = 1
    name: str
    recipe: dict[str, Any]
    made_of: dict[str, str]
    hardware: str
    commit: str | None
    finished: str
    samples_per_s: NonNegativeFloat = 0.0
    held_out_loss: float | None = None
    score: Score | None = None


class Records:
    """The records of one experiment.

    Args:
        experiment: Its file; records lie in a folder of its name beside it.
    """

    def __init__(self, experiment: Path) -> None:
        self.folder = experiment.with_suffix("")

    def find(self, name: str, recipe: TrainRecipe | None, made_of: Mapping[str, str]) -> Record | None:
        """Return a record if there is one that was made of the same.

        Args:
            name: Of the record.
            recipe: The run's now; None for a teacher.
            made_of: Hashes now; what is not here any more is left out and not compared.

        Raises:
            VegaError: The file is damaged.
        """
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            record = Record.from_json(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, VegaError) as error:
            raise VegaError(f"{path}: no whole record ({error}); restore it, or remove it to run again") from error
        same = all(record.made_of.get(key) == value for key, value in made_of.items())
        return record if same and (recipe is None or not recipe.changed_keys(record.recipe)) else None

    def write(self, record: Record) -> Record:
        """Keep a record, in place of an older one of its name.

        Raises:
            VegaError: It cannot be written.
        """
        path = self.folder / f"{record.name}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, (record.to_json() + "\n").encode())
        except OSError as error:
            raise VegaError(f"{path}: cannot be written ({error.strerror}); free space and run again") from error
        return record


def new_record(name: str, recipe: TrainRecipe | None, made_of: Mapping[str, str], samples_per_s: float = 0.0) -> Record:
    """Return the record of something that was just finished by this code on this machine."""
    return Record(
        name=name,
        recipe={} if recipe is None else recipe.identity(),
        made_of=dict(made_of),
        hardware=describe_hardware().name,
        commit=Code.here().commit,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        samples_per_s=samples_per_s,
    )


def weights_of(recipe: TrainRecipe) -> dict[str, str]:
    """Return hashes of the weights and map files that a recipe names, of those that are here."""
    from vega_diffusion.training.run import references

    maps = [] if recipe.model.surgery is None else [Path(recipe.model.surgery.map)]
    found = {f"map {path.name}": digest_of(path) for path in maps if path.is_file()}
    for component, reference in references(recipe):
        path = weights_path(reference, component)
        if path is not None:
            found[f"{component} of {reference}"] = digest_of(path)
    return found


def weights_path(reference: str, component: str) -> Path | None:
    """Return where a component's weights lie; None where they are not here."""
    from vega_diffusion.training.components import locate

    try:
        return locate(reference, component)
    except MissingFile:
        return None


def digest_of(path: Path) -> str:
    """Return the hash of a weights or map file."""
    from vega_diffusion.training.components import digest

    return digest([path])


def check_alike(records: Iterable[Record]) -> None:
    """Check that whatever two records were both made of was the same: the same teacher, the same autoencoder.

    Raises:
        VegaError: It was not.
    """
    seen: dict[str, tuple[str, str]] = {}
    for record in records:
        for what, value in record.made_of.items():
            other, known = seen.setdefault(what, (record.name, value))
            if known != value:
                raise VegaError(
                    f"{record.name}: made of another {what} than {other}; remove the older record and run it again"
                )
