"""`EvaluationResult`: all that one finished evaluation says, in one file, and reading it back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.evaluation.bootstrap import Interval
from vega_diffusion.evaluation.run_folder import Identity, JudgedPicture
from vega_diffusion.evaluation.scores import (
    PromptRates,
    Scores,
    SeenAndUnseen,
    chance_rates,
    prompt_rates,
    score_intervals,
    scores_of,
    seen_and_unseen,
)
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.evaluation import SuiteKind, SuitePrompt


class EvaluationResult(Spec):
    """`result.json` of a run's folder.

    Attributes:
        schema_version: Of this format.
        run: The run's random name.
        identity: What was evaluated, on what, by which checker and with which settings.
        partial: Only some prompts of each kind were asked: no score to quote.
        commit: Of the code, where it ran in a repository.
        finished: When, UTC.
        overall: Mean of the six kinds.
        kinds: GenEval's six kinds.
        rows: Background, place, style, natural: not in `overall`.
        intervals: 95 % intervals by kind and row, and "overall".
        held_out: Seen against unseen combinations.
        ceiling: What the ruler says of real renders of the same prompts.
        chance: What it says of the same pictures under shuffled prompts.
        num_prompts: How many prompts.
        num_images: How many pictures.
        seconds: Spent on drawing and judging the model's pictures.
        prompts: What became of each prompt, by id.
    """

    schema_version: Literal[1] = 1
    run: str
    identity: Identity
    partial: bool
    commit: str | None
    finished: str
    overall: float | None
    kinds: dict[SuiteKind, float]
    rows: dict[SuiteKind, float]
    intervals: dict[str, Interval]
    held_out: SeenAndUnseen
    ceiling: Scores
    chance: Scores
    num_prompts: PositiveInt
    num_images: PositiveInt
    seconds: NonNegativeFloat
    prompts: dict[str, PromptRates]


def make_result(
    prompts: Sequence[SuitePrompt],
    judged: Sequence[JudgedPicture],
    rendered: Sequence[JudgedPicture],
    identity: Identity,
    *,
    run: str,
    commit: str | None,
    finished: str,
    seconds: float,
) -> EvaluationResult:
    """Put the scores of a finished evaluation together.

    Args:
        prompts: All that were asked.
        judged: The model's pictures.
        rendered: Real renders of the same prompts.
        identity: What was evaluated.
        run: The run's random name.
        commit: Of the code.
        finished: When, UTC.
        seconds: Spent on the model's pictures.
    """
    rates = prompt_rates(judged)
    scores = scores_of(rates)
    return EvaluationResult(
        run=run,
        identity=identity,
        partial=identity.limit is not None,
        commit=commit,
        finished=finished,
        overall=scores.overall,
        kinds=scores.kinds,
        rows=scores.rows,
        intervals=score_intervals(rates),
        held_out=seen_and_unseen(rates),
        ceiling=scores_of(prompt_rates(rendered)),
        chance=scores_of(chance_rates(prompts, judged)),
        num_prompts=len(prompts),
        num_images=len(judged),
        seconds=round(seconds, 1),
        prompts=rates,
    )


def read_result(path: Path, field: str) -> EvaluationResult:
    """Read the result of a run's folder, or a result file.

    Args:
        path: Folder or file.
        field: What an error calls it.

    Raises:
        MissingFile: There is none: no such place, or an evaluation that is not finished.
        VegaError: The file is damaged, or no result.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        return EvaluationResult.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        unfinished = path.is_dir() and (path / "run.json").exists()
        reason = "the evaluation in it is not finished" if unfinished else "no result there"
        raise MissingFile(
            f"{field}: {str(path)!r}: {reason}; allowed: the folder of a finished vega evaluate, or its result.json"
        ) from error
    except VegaError as error:
        raise VegaError(f"{field}: {file} is no whole result of vega evaluate ({error}); evaluate again") from error
