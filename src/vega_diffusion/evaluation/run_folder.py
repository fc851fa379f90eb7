"""The folder of one evaluation: what it belongs to, its pictures, one line a judged picture; safe against any kill.

Layout: `run.json` (identity), `pictures/ID-SEED.png`, `judged.jsonl`, `seconds.json`, `result.json` (once it is
finished), `lock`. A prompt's pictures are written first, then its lines in one write; a prompt without all its lines
and pictures is drawn again. A folder never holds pictures of two models, suites, checkers or settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.models.detections import Finding
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.evaluation import SuiteKind, SuitePrompt


class Identity(Spec):
    """All that decides an evaluation's pictures and verdicts; results of different ones are never mixed.

    Attributes:
        suite: As "scenes".
        split: "dev" or "test".
        suite_sha256: Of the prompt file.
        limit: Prompts of each kind, where only some are asked.
        model: As the user called it.
        model_digest: Of its weights and configs.
        checker_sha256: Of the checker's weights.
        settings: How pictures are drawn, resolved: steps, guidance, sampler, negative prompt, device, dtype, torch.
    """

    suite: str
    split: str
    suite_sha256: str
    limit: int | None = None
    model: str
    model_digest: str
    checker_sha256: str
    settings: dict[str, str | int | float | None]

    @property
    def folder_name(self) -> str:
        """Suite, split, model digest and a hash of the settings."""
        asked = json.dumps({"limit": self.limit, **self.settings}, sort_keys=True)
        settings = hashlib.sha256(asked.encode()).hexdigest()
        return f"{self.suite}-{self.split}-{self.model_digest[:12]}-{settings[:8]}"


class JudgedPicture(Spec):
    """One line of `judged.jsonl`.

    Attributes:
        id: Of the prompt.
        kind: Of the prompt.
        unseen: Of the prompt.
        seed: Of the picture.
        file: The picture, from the run's folder.
        passed: Whether it shows the prompt.
        reasons: If not, why.
        finding: What the checker saw.
    """

    id: str
    kind: SuiteKind
    unseen: bool
    seed: int
    file: str
    passed: bool
    reasons: tuple[str, ...]
    finding: Finding


def picture_file(prompt: SuitePrompt, seed: int) -> str:
    """Return where a picture lies in a run's folder."""
    return f"pictures/{prompt.id}-{seed}.png"


@dataclass(frozen=True)
class RunFolder:
    """One evaluation's folder, held by this process (`opened`).

    Attributes:
        path: The folder.
        run: A random name given at the start: the test ledger holds a run once.
    """

    path: Path
    run: str

    @classmethod
    @contextmanager
    def opened(cls, path: Path, identity: Identity, *, wait: bool = False) -> Iterator[RunFolder]:
        """Claim a new folder, or go on in one that belongs to the same identity, alone.

        Args:
            path: The folder.
            identity: What it must belong to.
            wait: Wait for another process to leave it, rather than refuse.

        Raises:
            MissingFile: The folder cannot be made or written.
            VegaError: It belongs to something else, or another process works in it.
        """
        try:
            (path / "pictures").mkdir(parents=True, exist_ok=True)
            lock = open(path / "lock", "w")  # noqa: SIM115 - closed below
        except OSError as error:
            raise MissingFile(f"output: {path}: cannot be made ({error.strerror}); choose another folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                raise VegaError(
                    f"output: another process evaluates in {path}; wait for it, or choose another folder"
                ) from error
            yield cls(path, _claim(path, identity))

    @property
    def result_path(self) -> Path:
        """Where the result lies once the evaluation is finished."""
        return self.path / "result.json"

    def finished(self, prompts: Sequence[SuitePrompt]) -> dict[str, list[JudgedPicture]]:
        """Return the judged pictures of every prompt that is wholly done, by id; what is torn is dropped for good."""
        path = self.path / "judged.jsonl"
        content = path.read_bytes() if path.exists() else b""
        by_id: dict[str, dict[int, JudgedPicture]] = {}
        for line in content.split(b"\n"):
            judged = _parsed(line)
            if judged is not None:
                by_id.setdefault(judged.id, {})[judged.seed] = judged
        done: dict[str, list[JudgedPicture]] = {}
        for prompt in prompts:
            found = by_id.get(prompt.id, {})
            whole = set(found) == set(prompt.seeds) and all((self.path / one.file).is_file() for one in found.values())
            if whole:
                done[prompt.id] = [found[seed] for seed in prompt.seeds]
        kept = "".join(_line(judged) for judged in self.in_order(prompts, done)).encode()
        if kept != content:
            write_whole(path, kept)
        return done

    def add(self, judged: Sequence[JudgedPicture]) -> None:
        """Add the lines of one prompt, whose pictures are written."""
        with open(self.path / "judged.jsonl", "ab") as file:
            file.write("".join(_line(one) for one in judged).encode())
            file.flush()
            os.fsync(file.fileno())

    def add_seconds(self, seconds: float) -> None:
        """Add to the time spent, over all the processes that worked here one after another."""
        write_whole(self.path / "seconds.json", json.dumps(self.seconds() + seconds).encode())

    def seconds(self) -> float:
        """Return the seconds spent so far."""
        try:
            return float(json.loads((self.path / "seconds.json").read_text()))
        except (OSError, ValueError):
            return 0.0

    @staticmethod
    def in_order(prompts: Sequence[SuitePrompt], judged: Mapping[str, Sequence[JudgedPicture]]) -> list[JudgedPicture]:
        """Return judged pictures in the suite's order, whichever process finished first."""
        return [one for prompt in prompts for one in judged.get(prompt.id, ())]


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name, sync, rename: a file with its final name is always complete.

    Raises:
        MissingFile: It cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise MissingFile(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error


def _claim(path: Path, identity: Identity) -> str:
    """Return the run's random name after comparing what the folder belongs to."""
    marker = path / "run.json"
    if not marker.exists():
        if any(path.joinpath("pictures").iterdir()) or (path / "judged.jsonl").exists():
            raise VegaError(f"output: {path} holds pictures of something else; choose a new folder")
        run = secrets.token_hex(8)
        write_whole(marker, (json.dumps({"run": run, **identity.model_dump(mode="json")}, indent=1) + "\n").encode())
        return run
    try:
        found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        run, known = str(found.pop("run")), Identity.from_dict(found)
    except (ValueError, KeyError, AttributeError, VegaError) as error:
        raise VegaError(f"{marker}: damaged; choose a new folder") from error
    differing = identity_differences(known, identity)
    if differing:
        raise VegaError(
            f"output: {path} was begun with another {', '.join(differing)}; results are never mixed: "
            "choose a new folder with --output, or remove that one"
        )
    return run


def identity_differences(first: Identity, second: Identity) -> list[str]:
    """Return the names of all in which two identities differ; how the model was called does not count."""
    names = [
        name
        for name in Identity.model_fields
        if name not in ("model", "settings") and getattr(first, name) != getattr(second, name)
    ]
    keys = dict.fromkeys((*first.settings, *second.settings))
    return names + [key for key in keys if first.settings.get(key) != second.settings.get(key)]


def _line(judged: JudgedPicture) -> str:
    return judged.to_json() + "\n"


def _parsed(line: bytes) -> JudgedPicture | None:
    """Return a line's content, or None for one that a kill left half written."""
    if not line.strip():
        return None
    try:
        return JudgedPicture.from_json(line.decode("utf-8"))
    except (VegaError, UnicodeDecodeError):
        return None
