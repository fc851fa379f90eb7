"""The test ledger: one line for every finished run on a test split, so that nobody can run it until it pleases.

The lines lie in `benchmarks/results/test-ledger.jsonl` of the repository in which the command runs; elsewhere, in the
run's folder. Runs on `dev`, and runs of a few prompts only, are not written.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from vega_diffusion.errors import VegaError
from vega_diffusion.evaluation.results import EvaluationResult
from vega_diffusion.evaluation.scores import Scores
from vega_diffusion.inference.certificates import FOLDER as CERTIFICATES

LEDGER = Path("benchmarks") / "results" / "test-ledger.jsonl"


def belongs_in_ledger(result: EvaluationResult) -> bool:
    """Return whether a result is of a whole test split."""
    return result.identity.split == "test" and not result.partial


def ledger_path(start: Path, run_folder: Path) -> tuple[Path, bool]:
    """Return where lines go, and whether that is a repository's ledger.

    Args:
        start: The current folder: its repository counts, if it is ours.
        run_folder: Where lines go outside it.
    """
    for folder in (start, *start.parents):
        project = folder / "pyproject.toml"
        if (folder / ".git").exists() and project.is_file():
            name = re.search(r'^name = "(.+)"$', project.read_text(encoding="utf-8"), re.MULTILINE)
            if name and name.group(1) == "vega-diffusion":
                return folder / LEDGER, True
    return run_folder / LEDGER.name, False


def append(path: Path, result: EvaluationResult) -> bool:
    """Add a result's line, once a run, in one write.

    Returns:
        Whether it was added; False where the ledger has that run already.

    Raises:
        VegaError: The ledger cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_text(encoding="utf-8") if path.exists() else ""
        if any(f'"run": "{result.run}"' in line for line in content.splitlines()):
            return False
        # A line that a full disk cut short must not swallow this one.
        start = "" if not content or content.endswith("\n") else "\n"
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{start}{json.dumps(ledger_line(result))}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise VegaError(
            f"{path}: cannot be written ({error.strerror}); the result is kept: run the same command again"
        ) from error
    return True


def ledger_line(result: EvaluationResult) -> dict[str, object]:
    """Return what the ledger keeps of a result."""
    identity = result.identity
    return {
        "run": result.run,
        "finished": result.finished,
        "commit": result.commit,
        "suite": f"{identity.suite}-{identity.split}",
        "suite_sha256": identity.suite_sha256,
        "checker_sha256": identity.checker_sha256,
        "model": identity.model,
        "model_digest": identity.model_digest,
        "settings": identity.settings,
        "overall": result.overall,
        "intervals": result.intervals,
        "kinds": result.kinds,
        "rows": result.rows,
        "unseen": result.held_out.unseen.overall,
        "seen": result.held_out.seen.overall,
        "ceiling": _scores(result.ceiling),
        "chance": _scores(result.chance),
        "num_images": result.num_images,
        "seconds": result.seconds,
    }


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Return the ledger's lines, the oldest first; none where there is no ledger.

    Raises:
        VegaError: A line is damaged.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise VegaError(f"{path}: a line is no JSON ({error}); take it from the repository again") from error


def newest_of_models(lines: Iterable[dict[str, Any]], models: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return each model's last line, as it draws by itself: faster profiles are what certificates tell of.

    Args:
        lines: The ledger's, the oldest first.
        models: Whose; others were drawn for a comparison.
    """
    kept = [line for line in lines if line["settings"].get("profile", "exact") == "exact"]
    return {line["model"]: line for line in kept if line["model"] in models}


def _scores(scores: Scores) -> dict[str, object]:
    return {"overall": scores.overall, "kinds": scores.kinds, "rows": scores.rows}


def commit_here() -> str | None:
    """Return the commit of the current folder's repository, with "-dirty" where files differ, or None outside one.

    Result files and certificates do not count: measurements write some.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git(
            "status", "--porcelain", "--", ".", ":!benchmarks/results", f":(exclude,glob)**/{CERTIFICATES}/**"
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
