"""Every command that the documents show and mark as run is run, each document in one fresh folder, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- run -->\n```(bash|python)\n(.*?)```", re.DOTALL)
DOCUMENTS = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "<!-- run" in path.read_text()
]


# For GPUs: processors multiply float16 one number at a time, for minutes.
FOR_CPUS = {"torch_dtype=torch.float16": "torch_dtype=torch.float32"}


def blocks(path: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(path.read_text())


@pytest.mark.slow
def test_programs_answer_as_fresh_ones_do(programs: Path, tmp_path: Path) -> None:
    env = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TOLD": "by the caller"}
    (tmp_path / "show.py").write_text("import os, sys; print(sys.argv[1], os.environ['TOLD'], os.getcwd())")
    for command, code, out, err in (
        ("vega --version", 0, "0.", ""),
        ("vega paint", 2, "", "error: verb: 'paint'"),
        ("python show.py twice", 0, f"twice by the caller {tmp_path}", ""),
        ("python -c 'print(input()[::-1])' <<< drawer", 0, "reward", ""),
        ("python -c 'import sys; sys.exit(7)'", 7, "", ""),
        ("python -m vega_diffusion.cli.main paint", 2, "", "error: verb: 'paint'"),
        ("python -c '1 / 0'", 1, "", "Traceback"),
    ):
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout.startswith(out), done.stderr.startswith(err)) == (code, True, True), done
        assert bool(done.stdout) == bool(out)
        assert bool(done.stderr) == bool(err)


def test_readme_has_blocks_of_both_kinds() -> None:
    kinds = [kind for kind, _ in blocks(ROOT / "README.md")]
    assert kinds.count("bash") >= 3
    assert kinds.count("python") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documented_commands_run(path: Path, programs: Path, tmp_path: Path) -> None:
    here = tmp_path / "checkout"
    here.mkdir()
    for name in ("recipes", "scripts", "weights"):
        if (ROOT / name).exists():
            (here / name).symlink_to(ROOT / name)
    binaries = Path(sys.executable).parent
    env = os.environ | {
        "PATH": os.pathsep.join([str(programs), str(binaries), os.environ["PATH"]]),
        "VEGA_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    for kind, text in blocks(path):
        for shown, run in FOR_CPUS.items():
            text = text.replace(shown, run)
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [str(programs / "python"), "-c", text]
        done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
