"""README and docs agree with the tree: the file map, the links, and a word on every command whether it is run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "src/vega_diffusion/"
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- (run|not run: .+) -->")


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def children(paths: list[str], folder: str) -> set[str]:
    """Names directly in a folder; those of folders end with a slash."""
    inside = [path.removeprefix(folder) for path in paths if path.startswith(folder)]
    return {path.split("/")[0] + ("/" if "/" in path else "") for path in inside}


def file_map() -> tuple[set[str], set[str]]:
    """Names in README's map: those at the root, and those in the package."""
    text = (ROOT / "README.md").read_text().split("## File map", 1)[1]
    block = text.split("```text\n", 1)[1].split("```", 1)[0]
    root: set[str] = set()
    package: set[str] = set()
    for line in block.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        (package if line.startswith("  ") else root).update(names)
    return root, package


def test_the_file_map_is_the_tree() -> None:
    root, package = file_map()
    # These are made by training and by measuring, so a young tree may not hold them yet.
    made_later = {"assets/", "benchmarks/"}
    assert package - made_later == children(tracked(), PACKAGE) - made_later
    assert {name if name != PACKAGE else "src/" for name in root} - made_later == children(tracked(), "") - made_later
    assert made_later <= root | package


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_paths_in_the_text_exist(path: Path) -> None:
    for named in re.findall(r"`((?:docs|recipes|scripts|benchmarks|src|tests)/[\w./-]*)`", path.read_text()):
        # result files are written by the first measurement
        places = (ROOT / named, ROOT / PACKAGE / named)
        assert any(place.exists() for place in places) or named == "benchmarks/results/", named


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_command_is_marked_as_run_or_not_run(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("```bash", "```python", "```console")):
            assert MARK.fullmatch(lines[number - 1]), f"{path.name}:{number}: mark the block with <!-- run --> above it"


def test_readme_shows_the_grid_where_there_is_one() -> None:
    shown = "](docs/images/grid.png)" in (ROOT / "README.md").read_text()
    assert shown == (ROOT / "docs" / "images" / "grid.png").exists(), "run make docs"
