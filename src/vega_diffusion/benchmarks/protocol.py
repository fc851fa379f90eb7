"""How things are timed: warm-up, interleaved rounds, processor seconds beside wall seconds, peak memory of children.

What lives here: the clock and the repetition. What does not: what is timed (one file a case) and what is done with the
figures (`report`).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from vega_diffusion.benchmarks import launcher

MIN_REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """One repetition: seconds on the wall, seconds of processor time (all threads, and children that ended)."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class CommandRun:
    """One run of a command: its timing, its peak resident memory in bytes, what it printed on stdout."""

    timing: Timing
    peak_bytes: int
    stdout: str


def processor_seconds() -> float:
    """Return the processor time used so far by this process and by its children that have ended, in seconds."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def time_interleaved(
    cases: Mapping[str, Callable[[int], object]], *, warm_up: int = 1, repeats: int = MIN_REPEATS
) -> dict[str, list[Timing]]:
    """Time several cases in turn (a, b, a, b, ...), so that a slow spell of the machine meets all of them alike.

    Args:
        cases: Name of a case -> what to do in repetition i (0, 1, ...; warm-ups get -1). What returns a `Timing` has
            timed itself: the part that counts.
        warm_up: Untimed rounds before the first timed one (caches, lazy imports, allocators).
        repeats: Timed rounds, at least 5: the minimum and the median of fewer say little.

    Returns:
        Name of a case -> its timings in order.

    Raises:
        ValueError: Fewer than 5 rounds are asked for.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"repeats: {repeats} is not allowed; allowed: {MIN_REPEATS} or more")
    for _ in range(warm_up):
        for run in cases.values():
            run(-1)
    timings: dict[str, list[Timing]] = {name: [] for name in cases}
    for index in range(repeats):
        for name, run in cases.items():
            cpu, wall = processor_seconds(), time.perf_counter()
            answer = run(index)
            whole = Timing(time.perf_counter() - wall, processor_seconds() - cpu)
            timings[name].append(answer if isinstance(answer, Timing) else whole)
    return timings


def summarise(timings: Sequence[Timing]) -> dict[str, float]:
    """Return minimum and median of the wall seconds, median of the processor seconds, and how many there were."""
    return {
        "min_s": round(min(timing.wall_s for timing in timings), 4),
        "median_s": round(median(timing.wall_s for timing in timings), 4),
        "median_cpu_s": round(median(timing.cpu_s for timing in timings), 4),
        "count": len(timings),
    }


def run_command(arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> CommandRun:
    """Run `python -m ARGUMENTS` to its end and measure it from outside (`launcher` says why through a program).

    The peak is that of the command alone, as the system kept it: no sampling that could miss it.

    Raises:
        RuntimeError: The command failed; the message ends with what it wrote on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "measured.json"
        through = [sys.executable, "-I", launcher.__file__, str(report)]
        done = subprocess.run(
            [*through, sys.executable, "-m", *arguments],
            env=dict(os.environ) | dict(env or {}),
            capture_output=True,
            text=True,
            check=True,
        )
        measured = json.loads(report.read_text())
    if measured["exit_code"]:
        raise RuntimeError(f"{' '.join(arguments)} ended with {measured['exit_code']}: {done.stderr[-2000:]}")
    return CommandRun(Timing(measured["wall_s"], measured["cpu_s"]), measured["peak_bytes"], done.stdout)
