"""Write the model that a commit of this repository embeds as a folder: where recipes of later weights say they started.

    python scripts/embedded_at.py fe7b9ff starts/vega-mini

The model is read from the history; the checkout stays as it is.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
from pathlib import Path

from vega_diffusion.errors import InvalidValue, VegaError, run_script
from vega_diffusion.models.export import new_folder

REPOSITORY = Path(__file__).resolve().parent.parent
EMBEDDED = "src/vega_diffusion/assets/vega-mini"


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit", help="of this repository")
    parser.add_argument("output", type=Path, help="a new folder")
    given = parser.parse_args(argv)
    return run_script(lambda: embedded_at(given.commit, given.output))


def embedded_at(commit: str, output: Path) -> Path:
    """Write the embedded model of a commit; return its folder, which appears complete or not at all.

    Raises:
        VegaError: There is no such commit (a shallow clone has few), it embeds no model, or `output` is there.
    """
    if output.exists():
        raise InvalidValue("output", str(output), "a new folder", "choose another place")
    command = ["git", "-C", str(REPOSITORY), "archive", f"{commit}:{EMBEDDED}"]
    told = subprocess.run(command, capture_output=True)
    if told.returncode:
        raise VegaError(
            f"commit: {commit!r} embeds no model here ({told.stderr.decode(errors='replace').strip()}); allowed: a "
            f"commit of this repository with {EMBEDDED}; in a shallow clone run `git fetch --unshallow` first"
        )
    with new_folder(output) as place, tarfile.open(fileobj=io.BytesIO(told.stdout)) as archive:
        archive.extractall(place, filter="data")
    return output


if __name__ == "__main__":
    raise SystemExit(main())
