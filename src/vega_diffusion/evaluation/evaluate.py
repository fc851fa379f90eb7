"""`evaluate`: one model on one split of a suite, from the prompts to the result file, the sheets and the ledger."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vega_diffusion.errors import VegaError
from vega_diffusion.evaluation import ledger
from vega_diffusion.evaluation.contact_sheet import write_sheets
from vega_diffusion.evaluation.results import EvaluationResult, make_result, read_result
from vega_diffusion.evaluation.run import processes_here, run_prompts
from vega_diffusion.evaluation.run_folder import Identity, JudgedPicture, RunFolder, write_whole
from vega_diffusion.evaluation.suites import Suite, read_suite
from vega_diffusion.evaluation.workers import (
    DrawSettings,
    ModelJob,
    RenderJob,
    check_model,
    open_checker,
    prompts_at_once,
    renders_digest,
)
from vega_diffusion.training.run_directory import vega_home

if TYPE_CHECKING:
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.specs.request import GenerateRequest

EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate.

    Attributes:
        model: A name, a diffusers folder or a Hub id.
        suite: As "scenes".
        split: "dev" or "test".
        settings: How to draw, where not as the model asks for.
        checker: Folder of another checker than the package's.
        output: The run's folder; None: one under `$VEGA_HOME/evaluations`, named by what is evaluated.
        limit: Prompts of each kind; None: all.
        device: `auto`, `cpu`, `cuda`, `mps` or `xpu`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        processes: How many draw; None: one a core on a CPU, else one.
    """

    model: str
    suite: str = "scenes"
    split: str = "dev"
    settings: DrawSettings = field(default_factory=DrawSettings)
    checker: Path | None = None
    output: Path | None = None
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    processes: int | None = None


@dataclass(frozen=True)
class Evaluated:
    """What came out: the result, the run's folder, the contact sheets, and the ledger where a line was added."""

    result: EvaluationResult
    folder: Path
    sheets: tuple[Path, ...]
    ledger: Path | None
    in_repository: bool


def evaluate(request: EvaluationRequest) -> Evaluated:
    """Evaluate, or go on with an interrupted evaluation, or report a finished one again.

    Raises:
        VegaError: The model draws another size or lacks text encoders, a value is not allowed, the checker is
            damaged, or the output folder belongs to something else.
    """
    suite = read_suite(request.suite, request.split).limited(request.limit)
    job, identity = _prepared(request, suite)
    prompts = suite.prompts
    with RunFolder.opened(job.folder, identity) as folder:
        result = _finished_before(folder, suite, identity)
        if result is None:
            here, in_repository = ledger.ledger_path(Path.cwd(), folder.path)
            commit = ledger.commit_here() if in_repository else None  # of the code that draws, whatever comes meanwhile
            processes = request.processes or (processes_here() if identity.settings["device"] == "cpu" else 1)
            judged = run_prompts(
                folder,
                prompts,
                job.open,
                processes=processes,
                label=request.model,
                at_once=prompts_at_once(job.device),
            )
            rendered = _ceiling(job, suite, processes)
            result = make_result(
                prompts,
                judged,
                rendered,
                identity,
                run=folder.run,
                commit=commit,
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=folder.seconds(),
            )
            _write(result, folder)
        here, in_repository = ledger.ledger_path(Path.cwd(), folder.path)
        added = ledger.belongs_in_ledger(result) and ledger.append(here, result)
        judged = RunFolder.in_order(prompts, folder.finished(prompts))
        sheets = write_sheets(folder.path, prompts, judged, result)
    return Evaluated(result, job.folder, sheets, here if added else None, in_repository)


def _called(model: str) -> str:
    """Return what results call a model: a folder by its own name, since where it lies is nobody's affair."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def _prepared(request: EvaluationRequest, suite: Suite) -> tuple[ModelJob, Identity]:
    """Check everything that can be checked before the first picture is drawn."""
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.models.checker import checker_digest, default_checker_folder

    if request.processes is not None and request.processes < 1:
        raise VegaError(f"processes: {request.processes} is not allowed; allowed: 1 or more; leave it out")
    engine = Engine.load(request.model, request.device, request.dtype)
    check_model(engine)
    components = engine.components
    drawn = request.settings.request("x", None, 0, 1).resolved(components.spec.generation)
    checker = request.checker or default_checker_folder()
    checker_sha256 = checker_digest(checker)
    open_checker(checker, checker_sha256)
    identity = Identity(
        suite=suite.name,
        split=suite.split,
        suite_sha256=suite.sha256,
        limit=suite.limit,
        model=_called(request.model),
        model_digest=components.digest,
        checker_sha256=checker_sha256,
        settings={
            "num_steps": drawn.num_steps,
            "guidance_scale": drawn.guidance_scale,
            "sampler": drawn.sampler,
            "negative_prompt": drawn.negative_prompt,
            "device": components.device.type,
            "dtype": str(components.dtype).removeprefix("torch."),
            "torch": version("torch"),
        }
        | _profile_settings(engine, drawn),
    )
    folder = request.output or vega_home() / EVALUATIONS / identity.folder_name
    job = ModelJob(
        model=request.model,
        digest=components.digest,
        device=components.device.type,
        dtype=str(components.dtype).removeprefix("torch."),
        settings=request.settings,
        checker=checker,
        checker_sha256=checker_sha256,
        folder=folder,
    )
    return job, identity


def _profile_settings(engine: Engine, drawn: GenerateRequest) -> dict[str, str | int | float | None]:
    """Return what a profile other than `exact` decides of the pictures; nothing for `exact`, which is the rule."""
    profile = drawn.profile or "exact"
    if profile == "exact":
        return {}
    in_use = engine.route_of(drawn)
    return {
        "profile": profile,
        "definition": drawn.drawn_by.definition(in_use.backend, in_use.precision),
        "guidance_interval": None if drawn.guidance_interval is None else "{} to {}".format(*drawn.guidance_interval),
        "reuse": drawn.reuse,
        "decoder": drawn.decoder,
        "backend": in_use.backend,
        "precision": in_use.precision,
        **_unknown_to_the_digest(engine, drawn, in_use.backend, in_use.precision),
    }


def _unknown_to_the_digest(
    engine: Engine, drawn: GenerateRequest, backend: str, precision: str
) -> dict[str, str | int | float | None]:
    """Return what else decides pictures: the tiny autoencoder, and what makes a backend's networks."""
    from vega_diffusion.inference.backends.quantise_rule import DECODER_RULE, QuantisationRule
    from vega_diffusion.inference.vae_policy import decoder_there

    found: dict[str, str | int | float | None] = {}
    if decoder_there(engine.components, drawn.decoder) == "tiny":
        found["tiny_digest"] = engine.components.tiny_digest()
    if backend == "openvino":
        found["openvino"] = version("openvino")
    if (backend, precision) == ("openvino", "int8"):
        rules = [rule.as_identity() for rule in (QuantisationRule(), DECODER_RULE)]
        found |= {"nncf": version("nncf"), "rules": json.dumps(rules, sort_keys=True)}
    return found


def _write(result: EvaluationResult, folder: RunFolder) -> None:
    write_whole(folder.result_path, (result.to_json(indent=1) + "\n").encode())


def _finished_before(folder: RunFolder, suite: Suite, identity: Identity) -> EvaluationResult | None:
    """Return the folder's result where all its pictures are still there, under the model's present name."""
    if not folder.result_path.exists() or len(folder.finished(suite.prompts)) < len(suite.prompts):
        return None
    result = read_result(folder.result_path, "output")
    if result.run != folder.run:
        return None
    if result.identity != identity:  # in its name alone, or the folder would not have been opened
        result = result.model_copy(update={"identity": identity})
        _write(result, folder)
    return result


def _ceiling(job: ModelJob, suite: Suite, processes: int) -> list[JudgedPicture]:
    """Return the checker's verdicts on real renders of the same prompts, drawn once and kept beside the runs."""
    # Suite and checker stand in the name, too: another ceiling is another folder, not an error.
    identity = Identity(
        suite=suite.name,
        split=suite.split,
        suite_sha256=suite.sha256,
        limit=suite.limit,
        model="renders",
        model_digest=renders_digest(),
        checker_sha256=job.checker_sha256,
        settings={"suite": suite.sha256, "checker": job.checker_sha256, "torch": version("torch")},
    )
    path = vega_home() / EVALUATIONS / f"renders-{identity.folder_name}"
    with RunFolder.opened(path, identity, wait=True) as folder:
        renders = RenderJob(job.checker, job.checker_sha256, path)
        return run_prompts(folder, suite.prompts, renders.open, processes=processes, label="ceiling")
