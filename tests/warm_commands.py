"""A `vega` and a `python` for shells of tests, forked from a process that has already imported what takes long.

The documents show dozens of commands, and a fresh interpreter imports torch, diffusers and peft for ten seconds each
time. What runs is the command's own `main`, in a process of its own, with the caller's arguments, folder, environment
and streams. How commands start afresh is tested elsewhere (`tests/cli`, `make demo`).
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

IMPORTED = ("vega_diffusion.inference.engine", "vega_diffusion.training.run", "vega_diffusion.evaluation.evaluate")
SHIM = """#!{python} -SE
import json, os, socket, sys
asking = socket.socket(socket.AF_UNIX)
asking.connect({socket!r})
told = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
sent = socket.send_fds(asking, [told], [0, 1, 2])
asking.sendall(told[sent:])
asking.shutdown(socket.SHUT_WR)
code = asking.recv(16)
sys.exit(int(code) if code else 1)
"""


@contextmanager
def warm_commands(folder: Path) -> Iterator[Path]:
    """Yield a folder for PATH whose `vega` and `python` are answered by one process, which ends with the block.

    Args:
        folder: An empty one, with a short path: a socket lies in it.
    """
    address, programs = folder / "asked", folder / "bin"
    programs.mkdir()
    for program in ("vega", "python"):
        shim = programs / program
        shim.write_text(SHIM.format(python=sys.executable, socket=str(address), program=program))
        shim.chmod(0o755)
    with subprocess.Popen([sys.executable, __file__, str(address)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield programs
        finally:
            server.kill()


def _serve(address: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    for module in IMPORTED:
        import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children: each tells its code itself
    print("ready", flush=True)
    while True:
        asked, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(asked)
        asked.close()


def _answer(asked: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told, streams, _, _ = socket.recv_fds(asked, 1 << 16, 3)
    while more := asked.recv(1 << 16):
        told += more
    program, arguments, folder, environment = json.loads(told)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        code = _run(program, arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        asked.sendall(str(code).encode())
        os._exit(code)


def _run(program: str, arguments: list[str]) -> int:
    if program == "vega":
        from vega_diffusion.cli.main import main

        return main(arguments)
    if arguments[0] == "-c":
        sys.argv = arguments[:1]
        exec(arguments[1], {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
