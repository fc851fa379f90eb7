"""What a measurement leaves behind: one schema, one file a case and hardware, one JSON line on stdout.

What lives here: the result's schema, the description of the machine and of the code, writing and reading result files.
What does not: measuring (`protocol` and the cases), tables of results (`tables`, `headlines`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.inference.certificates import FOLDER as CERTIFICATES
from vega_diffusion.specs.base import Spec

RESULTS = Path("benchmarks") / "results"
EXPERIMENTS = "benchmarks/experiments"
VERSIONED = ("torch", "diffusers", "transformers", "numpy", "vega-diffusion")


class Bar(Spec):
    """A goal that a case has, what was measured against it, and whether it is met.

    `better` says on which side of the limit the goal lies: "lower" means measured <= limit.
    """

    what: str
    measured: float
    unit: str
    limit: float
    better: Literal["lower", "higher"]

    @property
    def met(self) -> bool:
        """Whether the measured value is on the right side of the limit (the limit itself counts)."""
        return self.measured <= self.limit if self.better == "lower" else self.measured >= self.limit


class Measurement(Spec):
    """What a case returns: raw samples by name, a summary computed from them, its bars, and the seeds it used.

    `name` tells measurements of one case apart that have files of their own.
    """

    name: str = ""
    samples: dict[str, list[float]]
    summary: dict[str, float | int | str]
    bars: tuple[Bar, ...] = ()
    seeds: tuple[int, ...] = ()
    protocol: str


class Hardware(Spec):
    """The machine as far as it bears on figures; `name` is the folder of its result files.

    `instructions` is the widest set of vector instructions: virtual machines hide which processor they run on, and
    those of one name differ by it.
    """

    name: str
    processor: str
    instructions: str | None = None
    cores: PositiveInt
    memory_gib: float
    accelerator: str | None
    system: str


class Result(Spec):
    """One result file."""

    schema_version: Literal[1] = 1
    case: str
    command: str
    commit: str | None
    dirty: bool | None
    finished: str
    hardware: Hardware
    threads: PositiveInt
    load_before: float
    versions: dict[str, str]
    measurement: Measurement


def describe_hardware() -> Hardware:
    """Return what machine this is: the accelerator names it where there is one, else the processor."""
    import torch

    processor = processor_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    instructions = vector_instructions()
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    full_name = accelerator or f"{cores} core {processor} {instructions or ''}"
    plain = re.sub(r"\((r|tm)\)|\b(processor|cpu)\b", " ", full_name.lower())
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return Hardware(
        name=name,
        processor=processor,
        instructions=instructions,
        cores=cores,
        memory_gib=round(memory, 1),
        accelerator=accelerator,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )


def processor_name() -> str:
    """Return the processor's own name where the system tells it, else its architecture."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def vector_instructions() -> str | None:
    """Return the widest of amx, avx512 and avx2 that the processor has; None where the system does not tell."""
    flags = (_cpu_line("flags") or "").split()
    wide = {"amx": "amx_tile", "avx512": "avx512f", "avx2": "avx2"}
    return next((name for name, flag in wide.items() if flag in flags), None)


def _cpu_line(key: str) -> str | None:
    try:
        found = re.search(rf"^{key}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None


def git(*arguments: str) -> str | None:
    """Return what a git command prints about the current folder, or None outside a repository."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True)
class Code:
    """Which code measures.

    Attributes:
        commit: Of the repository; None outside one.
        dirty: Whether files differ from it; None where that is not known.
    """

    commit: str | None
    dirty: bool | None

    @classmethod
    def here(cls) -> Code:
        """Return the code of the current folder.

        Result files, records of experiments and certificates do not make it dirty: each case that runs writes some.
        Where a checkout is copied without its history, `$VEGA_COMMIT` says which commit it is; whether it was changed
        is not known.
        """
        copied = os.environ.get("VEGA_COMMIT")
        written = [f":!{RESULTS.as_posix()}", f":(exclude,glob){EXPERIMENTS}/*/*.json"]
        written.append(f":(exclude,glob)**/{CERTIFICATES}/**")
        changes = None if copied else git("status", "--porcelain", "--untracked-files=all", "--", ".", *written)
        return cls(copied or git("rev-parse", "HEAD"), None if changes is None else bool(changes))


def make_result(
    case: str, command: str, measurement: Measurement, *, threads: int, load_before: float, code: Code | None = None
) -> Result:
    """Put a measurement together with everything that one must know to repeat it.

    Args:
        case: Its name in the table of cases.
        command: That ran it.
        measurement: What it found.
        threads: Of torch.
        load_before: Of the machine.
        code: As it was before the measurement, during which somebody may commit; None: as it is now.
    """
    code = code or Code.here()
    return Result(
        case=f"{case}-{measurement.name}" if measurement.name else case,
        command=command,
        commit=code.commit,
        dirty=code.dirty,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=describe_hardware(),
        threads=threads,
        load_before=round(load_before, 2),
        versions={name: metadata.version(name) for name in VERSIONED},
        measurement=measurement,
    )


def write_result(result: Result, root: Path = RESULTS) -> Path:
    """Write a result to `root/HARDWARE/CASE.json`, replacing an older one only when the new file is whole.

    What another command wrote there is never replaced: the new file's name then ends in a mark of its own command.
    """
    path = root / result.hardware.name / f"{result.case}.json"
    if path.exists() and _command_of(path) != result.command:
        mark = hashlib.sha256(result.command.encode()).hexdigest()[:6]
        path = path.with_name(f"{result.case}-{mark}.json")
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(result.to_json(indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        raise VegaError(f"{path}: cannot be written ({error.strerror}); give a folder with --output") from error
    return path


def _command_of(path: Path) -> str | None:
    """Return the command that wrote a result file; None where it cannot be read."""
    try:
        return Result.from_json(path.read_text()).command
    except (OSError, UnicodeDecodeError, VegaError):
        return None


def read_results(root: Path = RESULTS) -> list[Result]:
    """Read every result file under `root`, by hardware and case.

    Raises:
        MissingFile: `root` is no folder.
    """
    if not root.is_dir():
        raise MissingFile(f"{root}: no such folder; run `python -m vega_diffusion.benchmarks CASE` first")
    return [Result.from_json(path.read_text()) for path in sorted(root.glob("*/*.json"))]
