"""Runs one command and prints its seconds and peak memory as JSON: a small program between the bench and the command.

Why it exists: Linux carries the peak memory of the process that forks over to the program it then starts. Forked from
a bench that holds a model, even `true` would seem to need that much; this program is small, so the peak is the
command's own. Only the standard library is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time


def launch(command: list[str]) -> dict[str, float]:
    """Run a command with this program's stdin, stdout and stderr.

    Returns:
        `wall_s`, `cpu_s` (user and system), `peak_bytes` and `exit_code` (negative: the signal that ended it).
    """
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    return {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        # Linux counts in KiB, macOS in bytes.
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "exit_code": os.waitstatus_to_exitcode(status),
    }


if __name__ == "__main__":
    report, *rest = sys.argv[1:]
    measured = launch(rest)
    with open(report, "w") as file:
        json.dump(measured, file)
