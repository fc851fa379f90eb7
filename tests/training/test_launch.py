"""Ranks end with their launcher, however it ends, and its exit code is theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vega_diffusion.training.launch import end_with_launcher, launch

RANK = """
import os, sys, time
from vega_diffusion.training.launch import end_with_launcher
end_with_launcher()
with open(os.path.join(sys.argv[1], os.environ["RANK"]), "w") as file:
    file.write(str(os.getpid()))
time.sleep(120)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_end_when_the_launcher_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    code = "import sys; from vega_diffusion.training.launch import launch; launch(sys.argv[1:], 2)"
    command = [sys.executable, "-c", code, sys.executable, "-c", RANK, str(tmp_path)]
    with subprocess.Popen(command) as launcher:
        until = time.monotonic() + 60
        while not all((tmp_path / rank).is_file() and (tmp_path / rank).read_text() for rank in "01"):
            assert time.monotonic() < until, "the ranks never came up"
            time.sleep(0.05)
        pids = [int((tmp_path / rank).read_text()) for rank in "01"]
        assert all(alive(pid) for pid in pids)
        launcher.send_signal(number)
        until = time.monotonic() + 30
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < until, "a rank outlived its launcher"
            time.sleep(0.05)


def test_the_exit_code_is_that_of_the_rank_that_failed() -> None:
    fail = "import os, sys; sys.exit(int(os.environ['RANK']) * 7)"
    assert launch([sys.executable, "-c", fail], 2) == 7
    assert launch([sys.executable, "-c", "pass"], 2) == 0


def test_outside_a_launch_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_LAUNCHED", str(os.getpid()))  # inherited by a grandchild: the number is not its parent's
    end_with_launcher()
    assert "launcher" not in {thread.name for thread in threading.enumerate()}
