"""Runs a command and notes the moments at which it says something, without changing it.

What lives here: the clock that reads along. What does not: what is said (`adapting_speed`). For programs that are not
ours a line of their own is the only sign of where they are.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vega_diffusion.benchmarks.protocol import Timing

TAIL = 4000
"""Characters of output that are kept: a sign may come in two pieces, and a failure is told with its last words."""


@dataclass(frozen=True)
class Watched:
    """When a command said what, and when it ended: seconds since it was started, on the wall and of its processor."""

    signs: dict[str, Timing]
    end: Timing

    def between(self, first: str, last: str | None = None) -> Timing:
        """Return the seconds from one sign to another, or to the end."""
        begin, end = self.signs[first], self.end if last is None else self.signs[last]
        return Timing(end.wall_s - begin.wall_s, end.cpu_s - begin.cpu_s)


def watch_command(
    command: Sequence[str],
    signs: Mapping[str, str],
    *,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Watched:
    """Run a command to its end and note when each sign first appears on its stdout or stderr.

    Args:
        command: The program and its arguments.
        signs: Name -> regular expression.
        env: Variables beside those of this process.
        folder: Where it runs.

    Raises:
        RuntimeError: It failed, or never gave a sign; the message ends with its last words.
    """
    import psutil

    started, said = time.perf_counter(), ""
    found: dict[str, Timing] = {}
    process = subprocess.Popen(
        list(command),
        env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"} | dict(env or {}),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    clock = psutil.Process(process.pid)
    with process.stdout as pipe:
        while chunk := os.read(pipe.fileno(), 2**16):
            now, times = time.perf_counter(), clock.cpu_times()
            said = said[-TAIL:] + chunk.decode(errors="replace")
            for name, sign in signs.items():
                if name not in found and re.search(sign, said):
                    found[name] = Timing(now - started, times.user + times.system)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    end = Timing(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)
    told = f"{' '.join(command[:4])} ..."
    if process.returncode:
        raise RuntimeError(f"{told} ended with {process.returncode}: {said[-TAIL:]}")
    if missing := [name for name in signs if name not in found]:
        raise RuntimeError(f"{told} never gave the sign {missing[0]!r} ({signs[missing[0]]}): {said[-TAIL:]}")
    return Watched(found, end)
