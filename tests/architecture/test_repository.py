"""What the repository as a whole must be: free of machine traces, small, and honest about its sources."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from vega_diffusion.data.scenes.atlas import sample_folder
from vega_diffusion.data.scenes.icons import PACKAGES

ROOT = Path(__file__).parents[2]
MAX_BYTES_WITHOUT_WEIGHTS = 10 * 10**6
WEIGHT_FOLDERS = ("weights/", "src/vega_diffusion/assets/")

# Written in parts, so that this file does not hold what it looks for.
REGISTRY_HOSTS = [
    first + "." + last
    for first, last in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("download.pytorch", "org"),
        ("deb.debian", "org"),
        ("conda.anaconda", "org"),
    )
]
MACHINE_PATHS = re.compile(r"(?<![\w.$}-])/(?:root|work|home/\w+|Users/\w+|opt/wheels|tmp/\w+)/")
SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}|\bhf_[A-Za-z0-9]{30,}"
)


@cache
def tracked() -> tuple[str, ...]:
    """Paths that git tracks, relative to the root."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(path for path in done.stdout.split("\0") if path and (ROOT / path).is_file())


@cache
def texts() -> dict[str, str]:
    """Tracked files that are text, by path."""
    found = {}
    for path in tracked():
        blob = (ROOT / path).read_bytes()
        if b"\0" not in blob[:8192]:
            found[path] = blob.decode("utf-8", errors="replace")
    return found


def test_tracked_files_are_found() -> None:
    assert len(texts()) >= 30


@pytest.mark.parametrize("host", REGISTRY_HOSTS)
def test_no_file_names_a_registry_host(host: str) -> None:
    assert [path for path, text in texts().items() if host in text] == []


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, SECRETS], ids=["machine path", "secret"])
def test_no_file_holds_a_trace_of_a_machine_or_a_secret(pattern: re.Pattern[str]) -> None:
    assert {path: found.group() for path, text in texts().items() if (found := pattern.search(text))} == {}


def test_the_patterns_find_what_they_are_for() -> None:
    assert MACHINE_PATHS.search("see " + "/root" + "/x")
    assert MACHINE_PATHS.search('"/home' + '/someone/x"')
    assert not MACHINE_PATHS.search("framework/work/x and $HOME/work/y")
    assert SECRETS.search("hf_" + "a" * 34)


def test_repository_without_weights_and_assets_is_small() -> None:
    size = sum((ROOT / path).stat().st_size for path in tracked() if not path.startswith(WEIGHT_FOLDERS))
    assert size <= MAX_BYTES_WITHOUT_WEIGHTS


def test_notice_names_every_source_of_pictures() -> None:
    notice = (ROOT / "NOTICE").read_text()
    assert len(PACKAGES) >= 7
    for package in PACKAGES:
        licence = package.licence.split(" (")[0].replace("CC-BY-", "CC-BY ")
        row = next((line for line in notice.splitlines() if line.startswith(f"{package.style} ")), "")
        assert f"{package.package} {package.version}" in row
        assert licence in row
    for phrase in (
        "Copyright (c) Microsoft Corporation.",
        "Twemoji graphics (c) Twitter, Inc and other contributors",
        "Google Inc",
        "Emojitwo",
        "unicode-emoji-json",
        "emojilib",
        "src/vega_diffusion/data/scenes/english_words.txt",
    ):
        assert phrase in notice


def test_notice_says_rightly_what_the_committed_sample_holds() -> None:
    sample = json.loads((sample_folder() / "index.json").read_text())["styles"]
    rows = [line.split() for line in (ROOT / "NOTICE").read_text().splitlines()]
    said = {row[0]: row[-1] == "yes" for row in rows if row and row[0] in {package.style for package in PACKAGES}}
    assert said == {package.style: package.style in sample for package in PACKAGES}
    assert said["emojione"] is False, "the held-out style may not slip into what training can see"


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "manager.py"}
    assert [path for path in tracked() if Path(path).name in empty] == []
