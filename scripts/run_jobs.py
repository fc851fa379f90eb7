"""Run the jobs of a plan side by side, each as soon as those that it waits for are done, until a deadline.

    python scripts/run_jobs.py benchmarks/plans/mini-family-cuda.toml --seconds 540 --logs logs

A plan is a TOML file with `[[jobs]]`: `name`, `command` (bash) and `after` (names, all must have succeeded). At the
deadline jobs get SIGTERM, on which runs save their state.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 20


@dataclass(frozen=True)
class Job:
    """One command of a plan."""

    name: str
    command: str
    after: tuple[str, ...] = ()


def read_plan(path: Path) -> tuple[Job, ...]:
    """Read a plan's jobs.

    Raises:
        SystemExit: A name is unknown or comes twice.
    """
    jobs = tuple(
        Job(one["name"], one["command"], tuple(one.get("after", ())))
        for one in tomllib.loads(path.read_text(encoding="utf-8"))["jobs"]
    )
    names = [job.name for job in jobs]
    for job in jobs:
        if names.count(job.name) > 1:
            raise SystemExit(f"error: {path}: job {job.name!r} comes twice; rename one")
        for name in job.after:
            if name not in names:
                raise SystemExit(f"error: {path}: {job.name!r} waits for {name!r}, which is no job; allowed: {names}")
    return jobs


def run_plan(jobs: tuple[Job, ...], seconds: float, logs: Path) -> dict[str, str]:
    """Run jobs until all are done or the time is over.

    Returns:
        Name -> `done`, `failed`, `stopped` (at the deadline) or `skipped`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    waiting, running, ended = list(jobs), dict[str, subprocess.Popen[bytes]](), dict[str, str]()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {line}", flush=True)

    while waiting or running:
        for job in list(waiting):
            if any(ended.get(name, "done") != "done" for name in job.after):
                waiting.remove(job)
                ended[job.name] = "skipped"
                say(f"{job.name}: skipped")
            elif all(name in ended for name in job.after):
                waiting.remove(job)
                with open(logs / f"{job.name}.log", "wb") as log:
                    running[job.name] = subprocess.Popen(
                        ["bash", "-c", f"set -euo pipefail\n{job.command}"],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                say(f"{job.name}: started")
        for name, process in list(running.items()):
            code = process.poll()
            if code is not None:
                del running[name]
                ended[name] = "done" if code == 0 else "failed"
                say(f"{name}: done" if code == 0 else f"{name}: failed ({code}): {_last_line(logs / (name + '.log'))}")
        if time.monotonic() - started > seconds:
            say("time is over")
            ended |= {job.name: "skipped" for job in waiting} | dict.fromkeys(running, "stopped")
            _stop(running)
            return ended
        time.sleep(0.2)
    return ended


def _stop(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + GRACE_S
    while any(process.poll() is None for process in running.values()) and time.monotonic() < end:
        time.sleep(0.1)
    for process in running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else ""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run; 0 when every job is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop what still runs")
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args(argv)
    ended = run_plan(read_plan(given.plan), given.seconds, given.logs)
    return 0 if all(how == "done" for how in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
