"""The program leaves at once: what was printed and registered comes out, nothing is taken apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

PROBE = """
import atexit
import os

class Large:
    def __del__(self):
        os.write(1, b"taken apart\\n")

KEPT = Large()

def run(argv):
    atexit.register(print, "registered")
    print("drawn")
    return 1 // int(argv[0]) + int(argv[1])
"""
COMMAND = """
import sys
from vega_diffusion.cli import main
main.VERBS["probe"] = ("probe", "")
sys.argv = ["vega", "probe", *sys.argv[1:]]
main.command()
"""


def run(folder: Path, *arguments: str, stdout: int | IO[str]) -> subprocess.CompletedProcess[str]:
    (folder / "probe.py").write_text(PROBE)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        (("2", "0"), 0, ["drawn", "registered"]),
        (("1", "2"), 3, ["drawn", "registered"]),
        (("0", "0"), 1, ["drawn", "registered", "taken apart"]),  # a bug: Python ends as it always does
    ],
)
def test_a_command_leaves_with_its_code(
    arguments: tuple[str, str], code: int, lines: list[str], tmp_path: Path
) -> None:
    done = run(tmp_path, *arguments, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout.splitlines()) == (code, lines)
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)


def test_what_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(tmp_path, "2", "0", stdout=full)
    assert done.returncode == 120, done.stderr
    assert "No space left on device" in done.stderr
