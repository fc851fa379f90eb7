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


def blocks(path: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(path.read_text())


def test_readme_has_blocks_of_both_kinds() -> None:
    kinds = [kind for kind, _ in blocks(ROOT / "README.md")]
    assert kinds.count("bash") >= 3
    assert kinds.count("python") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documented_commands_run(path: Path, tmp_path: Path) -> None:
    here = tmp_path / "checkout"
    here.mkdir()
    for name in ("recipes", "scripts", "weights"):
        if (ROOT / name).exists():
            (here / name).symlink_to(ROOT / name)
    binaries = Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "VEGA_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    for kind, text in blocks(path):
        command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
