"""Case `package`: bytes of the wheel, and of the repository without weights and assets."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from vega_diffusion.benchmarks.protocol import run_command
from vega_diffusion.benchmarks.report import Bar, Measurement, git
from vega_diffusion.errors import VegaError

WEIGHT_FOLDERS = ("weights/", "src/vega_diffusion/assets/")


def measure() -> Measurement:
    """Build the wheel in a temporary folder and add up the tracked files.

    Raises:
        VegaError: The current folder is not the root of the project's repository.
    """
    listed = git("ls-files", "-z")
    if listed is None or not Path("pyproject.toml").is_file():
        raise VegaError("package: the current folder is not the repository's root; change to it first")
    tracked = [path for path in listed.split("\0") if path and Path(path).is_file()]
    code = sum(Path(path).stat().st_size for path in tracked if not path.startswith(WEIGHT_FOLDERS))
    weights = sum(Path(path).stat().st_size for path in tracked if path.startswith(WEIGHT_FOLDERS))
    with tempfile.TemporaryDirectory() as folder:
        built = build_wheel(tracked, Path(folder))
        wheel = built.stat().st_size
        with zipfile.ZipFile(built) as archive:
            inside = set(archive.namelist())
    missing = [path for path in tracked if path.startswith("src/") and path.removeprefix("src/") not in inside]
    if missing:
        raise VegaError(f"package: the wheel lacks {missing[0]} (of {len(missing)}); add it to package-data")
    return Measurement(
        samples={"wheel_bytes": [wheel], "repository_bytes": [code], "weights_bytes": [weights]},
        summary={"wheel_bytes": wheel, "repository_bytes": code, "weights_bytes": weights},
        bars=(
            Bar(what="wheel with the embedded model", measured=wheel / 1e6, unit="MB", limit=60, better="lower"),
            Bar(what="repository without weights and assets", measured=code / 1e6, unit="MB", limit=10, better="lower"),
        ),
        protocol="`pip wheel --no-deps` of the tracked files; sizes of the files that git tracks; 1 MB = 10^6 bytes",
    )


def build_wheel(tracked: list[str], folder: Path) -> Path:
    """Build the wheel of the tracked files alone: a build folder left from before would add what is gone."""
    for path in tracked:
        if path.startswith("src/") or "/" not in path:
            target = folder / "source" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    run_command(["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "wheel"), str(folder / "source")])
    return next((folder / "wheel").glob("*.whl"))
