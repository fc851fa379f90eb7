"""Starts one process of a command for each rank on this machine, and ends them together.

The environment is the one torchrun sets, so a run can as well be started by torchrun or `accelerate launch`. Each rank
holds the read end of a pipe that nobody writes to: it closes when the launcher is gone, even killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

GRACE_S = 30.0
_LAUNCHED = "VEGA_LAUNCHED"


def launch(command: Sequence[str], processes: int, variables: Mapping[str, str] | None = None) -> int:
    """Run `command` once a rank and return the first exit code that is not 0, else 0.

    SIGTERM and SIGINT are handed on to every rank. When one rank fails, the others are ended. Rank 0 speaks; what the
    others wrote to stderr is shown only where rank 0 did not fail itself.

    Args:
        command: Program and arguments.
        processes: Number of ranks, >= 1.
        variables: Further environment variables of the ranks.
    """
    with tempfile.TemporaryFile() as quiet:
        port = _free_port()
        ranks = [_start(command, rank, processes, port, quiet, variables or {}) for rank in range(processes)]

        def forward(number: int, _frame: object) -> None:
            for child in ranks:
                if child.poll() is None:
                    child.send_signal(number)

        previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            _wait(ranks)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        codes = [child.returncode for child in ranks]
        if codes[0] in (0, -signal.SIGTERM) and any(codes):
            quiet.seek(0)
            sys.stderr.write(quiet.read().decode(errors="replace"))
        own = [code for code in codes if code > 0]
        return own[0] if own else next((128 - code for code in codes if code), 0)


def end_with_launcher() -> None:
    """In a rank: get SIGTERM when the launcher is gone, so that the run saves its state. Elsewhere: nothing."""
    if os.environ.get(_LAUNCHED) != str(os.getppid()):
        return

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _start(
    command: Sequence[str],
    rank: int,
    processes: int,
    port: int,
    quiet: IO[bytes],
    variables: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    environment = (
        os.environ
        | dict(variables)
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            _LAUNCHED: str(os.getpid()),
        }
    )
    # A session of its own: Ctrl-C then reaches the ranks once, through us, and not twice.
    stderr = None if rank == 0 else quiet
    return subprocess.Popen(
        list(command), env=environment, stdin=subprocess.PIPE, stderr=stderr, start_new_session=True
    )


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    failed_at: float | None = None
    while any(child.poll() is None for child in ranks):
        time.sleep(0.1)
        if failed_at is None and any(child.poll() for child in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
            for child in ranks:
                if child.poll() is None:
                    child.kill()  # it waits for a rank that is gone


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
