"""`vega evaluate`: how well a model follows prompts, and comparisons of two evaluations."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.errors import InvalidValue, VegaError

OTHERS = {
    "compare": "paired differences of two evaluations: vega evaluate compare A B",
    "frechet": "Frechet distance of a folder of pictures from real scenes",
}


def run(argv: list[str]) -> int:
    """Evaluate a model, or run one of the other comparisons (a model folder of that name is written ./compare).

    Returns:
        0 when everything is drawn and judged.
    """
    match argv[:1]:
        case []:
            raise VegaError("model: missing; allowed: a name or a folder; write vega evaluate vega-mini")
        case ["compare"]:
            return run_verb("evaluate compare", compare, argv[1:])
        case ["frechet"]:
            from vega_diffusion.cli import frechet

            return frechet.run(argv[1:])
        case _:
            return run_verb("evaluate", evaluate, argv)


def evaluate(
    model: Annotated[str, tyro.conf.Positional, text("NAME|FOLDER|HUB-ID")],
    /,
    suite: Annotated[str, text("scenes", "scenes")] = "scenes",
    split: Annotated[str, text("dev|test", "dev")] = "dev",
    num_steps: Annotated[str | None, text("INT", "the model's")] = None,
    guidance_scale: Annotated[str | None, text("FLOAT", "the model's")] = None,
    sampler: Annotated[str | None, text("NAME", "the model's")] = None,
    profile: Annotated[str | None, text("exact|balanced|turbo|realtime", "exact")] = None,
    precision: Annotated[str | None, text("fp32|bf16|int8|int8-weights", "the profile's")] = None,
    checker: Annotated[str | None, text("FOLDER", "the package's")] = None,
    output: Annotated[str | None, text("FOLDER", "one in $VEGA_HOME/evaluations")] = None,
    limit: Annotated[str | None, text("N", "all prompts")] = None,
    device: Annotated[str, text("auto|cpu|cuda|mps|xpu", "auto")] = "auto",
    dtype: Annotated[str, text("auto|float32|bfloat16|float16", "auto")] = "auto",
    processes: Annotated[str | None, text("N", "one a core")] = None,
    json: bool = False,
) -> int:
    """Draw a suite's prompts, judge every picture, print the scores; an interrupted call goes on where it stopped.

    Two other forms: vega evaluate compare A B, and vega evaluate frechet FOLDER.

    Args:
        model: A known name or a diffusers folder; it must draw 128 x 128 px.
        suite: Which prompts.
        split: dev is for tuning; test is for the end of a piece of work, and every run of it goes into the ledger.
        num_steps: Sampler steps.
        guidance_scale: How strictly to follow the prompt; 1 or less is off.
        sampler: As for vega generate.
        profile: As for vega generate.
        precision: As for vega generate.
        checker: Folder of another checker.
        output: Folder for pictures, verdicts and the result; new, or begun by the same command.
        limit: Only so many prompts of each kind: a quick look, marked as partial.
        device: Where to run.
        dtype: Number format of the networks.
        processes: How many processes draw; the result does not depend on it.
        json: Print one JSON object as the last line instead of the table.
    """
    # Their notices about optional packages are of no use here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import torch

    from vega_diffusion.evaluation.evaluate import EvaluationRequest
    from vega_diffusion.evaluation.evaluate import evaluate as evaluate_model
    from vega_diffusion.evaluation.report import result_report, result_table
    from vega_diffusion.evaluation.workers import DrawSettings

    # One thread a process: small networks gain nothing from more, and sums must not depend on how many there are.
    torch.set_num_threads(1)
    steps, scale = _whole("num_steps", num_steps), _number("guidance_scale", guidance_scale)
    settings = DrawSettings(steps, scale, sampler, profile, precision)  # type: ignore[arg-type]
    done = evaluate_model(
        EvaluationRequest(
            model=model,
            suite=suite,
            split=split,
            settings=settings,
            checker=None if checker is None else Path(checker).expanduser(),
            output=None if output is None else Path(output).expanduser(),
            limit=_whole("limit", limit),
            device=device,
            dtype=dtype,
            processes=_whole("processes", processes),
        )
    )
    if done.ledger is not None:
        where = "" if done.in_repository else " (not inside the repository: its own ledger has no line of this run)"
        print(f"ledger: {done.ledger}{where}", file=sys.stderr)
    if json:
        ledger = None if done.ledger is None else str(done.ledger)
        print(jsonlib.dumps(result_report(done.result, str(done.folder), ledger)))
    else:
        print("\n".join(result_table(done.result)))
        print(f"pictures, verdicts and {len(done.sheets)} contact sheets: {done.folder}")
    return 0


def compare(
    a: Annotated[str, tyro.conf.Positional, text("A")],
    b: Annotated[str, tyro.conf.Positional, text("B")],
    /,
    json: bool = False,
) -> int:
    """Print what B scores less what A scores, prompt by prompt, with 95 % intervals.

    Args:
        a: Folder of a finished evaluation, or its result.json.
        b: Another one, of the same prompts by the same checker.
        json: Print one JSON object as the last line instead of the table.
    """
    from vega_diffusion.evaluation.compare import compare as compare_results
    from vega_diffusion.evaluation.report import comparison_table
    from vega_diffusion.evaluation.results import read_result

    first, second = (read_result(Path(path).expanduser(), field) for path, field in ((a, "A"), (b, "B")))
    comparison = compare_results(first, second)
    print(comparison.to_json() if json else "\n".join(comparison_table(comparison)))
    return 0


def _whole(field: str, value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError as error:
        raise InvalidValue(field, value, "a whole number", "write one") from error


def _number(field: str, value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError as error:
        raise InvalidValue(field, value, "a number", "write one") from error
