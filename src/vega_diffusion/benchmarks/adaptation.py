"""Case `adaptation`: the embedded model learns styles and a subject that it never saw, and is judged.

A job that is trained and judged is not run again: the command may be stopped at any moment and called anew. Sheets of
pictures lie in `$VEGA_HOME/adaptation/sheets`; docs/adapting.md shows copies.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vega_diffusion.benchmarks.adaptation_pictures import draw_and_judge, share_interval, write_sheet
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import VegaError

if TYPE_CHECKING:
    from vega_diffusion.evaluation.compare import Difference

BASE = "vega-mini"
PROMPTS_OF_A_KIND = 10
RECOGNISED, LOST, LONGEST_S = 0.80, -0.05, 900.0
TAKEN, TAKEN_WITHOUT = 0.10, 0.30
SUBJECT = "black-and-white cat"


@dataclass(frozen=True)
class Job:
    """One adaptation.

    Args:
        name: What its run and its sheet are called.
        recipe: The recipe's file.
        folders: Key of the recipe -> its folder of pictures and the options of `vega data scenes` that write it.
        changes: What else differs from the recipe.
        style: Name of the style that it learns.
        subject: Whether it learns the subject.
        prior: Whether the class is to stay what it was.
    """

    name: str
    recipe: str
    folders: tuple[tuple[str, str, tuple[str, ...]], ...]
    changes: tuple[str, ...] = ()
    style: str | None = None
    subject: bool = False
    prior: bool = True


_MIX = ("--mix", "recipes/vega-mini-binding-cpu.toml")  # what the model itself was trained on last
_PLAIN = ("data.prior.folder", "plain", ("--count", "1536", "--seed", "33", *_MIX))
_PLAIN_TOO = ("data.prior.1.folder", *_PLAIN[1:])
_CAT = ("data.folder", "cat", ("--count", "5", "--seed", "34", "--subject", SUBJECT))
_NEON = ("data.folder", "neon", ("--count", "512", "--seed", "31", "--filter", "neon", *_MIX))
_SKETCH = ("data.folder", "sketch", ("--count", "512", "--seed", "32", "--filter", "sketch", *_MIX))
_FULL = "recipes/vega-mini-style-full-cpu.toml"
# Lines on white ground instead of everything that a prompt's ground and colours ask for: learnt by higher rates alone.
_HARDER = (
    "data.prior.weight=4",
    "objective.min_snr_gamma=1",
    "optimizer.lr=1.5e-4",
    "optimizer.lr_factors.text_encoder=8",
    "optimizer.lr_factors.text_encoder_2=8",
)
JOBS = (
    Job("neon-lora", "recipes/vega-mini-style-lora-cpu.toml", (_NEON, _PLAIN), style="neon"),
    Job("neon-full", _FULL, (_NEON, _PLAIN), style="neon"),
    Job("sketch-full", _FULL, (_SKETCH, _PLAIN), _HARDER, style="sketch"),
    Job("subject-lora", "recipes/vega-mini-subject-lora-cpu.toml", (_CAT, _PLAIN_TOO), subject=True),
    Job(
        "subject-alone",
        "recipes/vega-mini-subject-lora-cpu.toml",
        (_CAT,),
        ("data.prior=none", "micro_batch_size=8", "batch_size=16"),  # as many pictures of the subject a step
        subject=True,
        prior=False,
    ),
)


def measure(processes: int = 1, job: tuple[str, ...] = ()) -> Measurement:
    """Train, export and judge every job, beside the model before.

    Args:
        processes: Of training and of drawing.
        job: Names of jobs; all unless given.
    """
    chosen = [one for one in JOBS if not job or one.name in job]
    samples: dict[str, list[float]] = {}
    summary: dict[str, float | int | str] = {}
    bars: list[Bar] = []
    for one in chosen:
        _measure_job(one, processes, samples, summary, bars)
    return Measurement(
        samples=samples,
        summary=summary,
        bars=tuple(bars),
        protocol="prompt-following: all of scenes-dev, paired with the model before, intervals from 2,000 draws of "
        "prompts; recognised: share of pictures of new prompts, two seeds each, in which the frozen checker finds the "
        "style or the subject; all seeds count; seconds are of training, with encoding and class pictures as far as "
        "$VEGA_HOME had none of them yet",
    )


def _measure_job(
    job: Job,
    processes: int,
    samples: dict[str, list[float]],
    summary: dict[str, float | int | str],
    bars: list[Bar],
) -> None:
    home = _home()
    _say(f"{job.name}: training")
    seconds = _trained(job, processes)
    model = home / "models" / job.name
    _exported(job, model)
    summary[f"{job.name}_seconds"] = round(seconds, 1)
    bars.append(_bar(f"{job.name}: training, two cores", seconds, "s", LONGEST_S, "lower"))
    asked = new_prompts(job)
    found, pictures = draw_and_judge(str(model), [text for text, _ in asked], _recogniser(job), _say)
    what = f"style {job.style}" if job.style else "the subject"
    share = sum(found) / len(found)
    samples[f"{job.name}_recognised"] = [float(one) for one in found]
    summary[f"{job.name}_recognised"] = round(share, 4)
    summary[f"{job.name}_recognised_interval"] = share_interval(found)
    bars.append(_bar(f"{job.name}: {what} recognised in new prompts", share, "of 1", RECOGNISED, "higher"))
    write_sheet(pictures, home / "sheets" / f"adaptation-{job.name}.png")
    if job.subject:
        taken, _ = draw_and_judge(str(model), [text for text, _ in class_prompts()], _recogniser(job), _say)
        share = sum(taken) / len(taken)
        samples[f"{job.name}_class_taken"] = [float(one) for one in taken]
        summary[f"{job.name}_class_taken"] = round(share, 4)
        summary[f"{job.name}_class_taken_interval"] = share_interval(taken)
        limit, better = (TAKEN, "lower") if job.prior else (TAKEN_WITHOUT, "higher")
        bars.append(_bar(f"{job.name}: the class taken for the subject", share, "of 1", limit, better))
    if job.prior:
        difference = _following(model, processes)
        summary[f"{job.name}_following"] = difference.difference
        summary[f"{job.name}_following_interval"] = f"{difference.interval[0]} to {difference.interval[1]}"
        summary["before_following"] = difference.a
        bars.append(
            _bar(f"{job.name}: prompt-following, after less before", difference.difference, "of 1", LOST, "higher")
        )


def new_prompts(job: Job) -> list[tuple[str, str]]:
    """Return (prompt, where it is from) of what the job has not been trained on."""
    from vega_diffusion.evaluation.suites import read_suite
    from vega_diffusion.specs.evaluation import OVERALL_KINDS

    if job.style is None:
        return [(text.replace("a cat", "a sks cat"), kind) for text, kind in class_prompts()]
    found = []
    for kind in OVERALL_KINDS:
        prompts = [prompt for prompt in read_suite("scenes", "dev").prompts if prompt.kind == kind]
        found += [(f"{prompt.prompt}, {job.style} style", kind) for prompt in prompts[:PROMPTS_OF_A_KIND]]
    return found


def class_prompts() -> list[tuple[str, str]]:
    """Return (prompt, kind) of the subject's class: alone, on every background, in every place, beside other things."""
    from vega_diffusion.data.scenes.scene import BACKGROUNDS
    from vega_diffusion.data.scenes.words import PLACE_PHRASES

    found = [("a cat", "alone")]
    for colour in BACKGROUNDS:
        article = "an" if colour[0] in "aeiou" else "a"
        found.append((f"a cat on {article} {colour} background", "background"))
    found += [(f"a cat {phrases[0]}", "place") for phrases in PLACE_PHRASES.values()]
    others = ("a slice of pizza", "an umbrella", "a guitar", "a rocket", "a mushroom")
    return found + [(f"a cat next to {other}", "beside") for other in others]


def _recogniser(job: Job) -> Callable[..., bool]:
    if job.style is not None:
        return lambda finding: finding.style == job.style
    return lambda finding: any(detection.noun == SUBJECT for detection in finding.detections)


def _trained(job: Job, processes: int) -> float:
    """Train a job that is not trained yet, and return the seconds that its commands took in all."""
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.training.run_directory import RunDirectory

    changes = list(job.changes)
    for key, name, options in job.folders:
        folder = _home() / name
        _vega(["data", "scenes", "--output", str(folder), *options])
        changes.append(f"{key}={folder}")
    run = f"adaptation-{job.name}"
    recipe = TrainRecipe.read(Path(job.recipe), changes)
    told = RunDirectory(run).path / "seconds"  # goes where the run goes
    if not RunDirectory(run).is_done(recipe):
        started = time.monotonic()
        before = float(told.read_text()) if told.exists() else 0.0
        options = [part for change in changes for part in ("--set", change)]
        try:
            _vega(["train", job.recipe, "--run-name", run, "--processes", str(processes), *options])
        finally:
            if told.parent.is_dir():
                told.write_text(str(before + time.monotonic() - started))
    if not told.exists():
        raise VegaError(f"{told}: missing, so nobody knows how long run {run} took; move the run away to train it anew")
    return float(told.read_text())


def _exported(job: Job, folder: Path) -> None:
    from vega_diffusion.training.publish import export_run

    folder.parent.mkdir(parents=True, exist_ok=True)
    export_run(f"adaptation-{job.name}", folder, job.name, ("fp32",))


def _following(model: Path, processes: int) -> Difference:
    """Return the paired difference on scenes-dev, the adapted model less the one before."""
    from vega_diffusion.evaluation.compare import compare
    from vega_diffusion.evaluation.evaluate import EvaluationRequest, evaluate

    before, after = (evaluate(EvaluationRequest(name, processes=processes)).result for name in (BASE, str(model)))
    found = compare(before, after).overall
    assert found is not None
    return found


def _home() -> Path:
    from vega_diffusion.training.run_directory import vega_home

    return vega_home() / "adaptation"


def _vega(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "vega_diffusion.cli.main", *arguments]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise VegaError(f"vega {arguments[0]}: ended early; see above, then run the command again, it goes on there")


def _bar(what: str, measured: float, unit: str, limit: float, better: str) -> Bar:
    return Bar(what=what, measured=round(measured, 4), unit=unit, limit=limit, better=better)  # type: ignore[arg-type]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
