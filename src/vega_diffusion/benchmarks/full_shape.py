"""Case `full-shape`: a folder of Segmind-Vega's full shape with random weights loads and makes a 512 px picture.

The weights are random, so the picture shows nothing: this case is about memory, shapes and seconds only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from vega_diffusion.benchmarks.protocol import run_command
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import VegaError

SCRIPT = Path("scripts") / "make_random_model.py"


def measure(
    folder: str | None = None, preset: str = "vega", size: int = 512, num_steps: int = 2, dtype: str = "auto"
) -> Measurement:
    """Run `vega generate` on a full-shape folder and note its peak memory.

    Args:
        folder: A folder made before by `scripts/make_random_model.py`; None makes one and removes it afterwards.
        preset: Architecture of the folder to make.
        size: Width and height of the picture, px.
        num_steps: Sampler steps; memory does not depend on them.
        dtype: As of `vega generate`.

    Raises:
        VegaError: The script is not there: the current folder is not the repository's root.
    """
    from vega_diffusion.models.detect import load_spec

    with tempfile.TemporaryDirectory() as temporary:
        model = Path(folder) if folder else make_folder(preset, Path(temporary) / f"random-{preset}")
        command = ["vega_diffusion.cli.main", "generate", "a cat", "--model", str(model), "--seed", "0"]
        command += ["--width", str(size), "--height", str(size), "--num-steps", str(num_steps), "--dtype", dtype]
        run = run_command([*command, "--output", temporary])
        name = load_spec(model).name
        weights = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    peak_gb = run.peak_bytes / 1e9
    return Measurement(
        samples={
            "wall_s": [run.timing.wall_s],
            "cpu_s": [run.timing.cpu_s],
            "peak_bytes": [run.peak_bytes],
            "weight_bytes": [weights],
        },
        summary={
            "model": name,
            "size_px": size,
            "num_steps": num_steps,
            "peak_gb": round(peak_gb, 3),
            "wall_s": round(run.timing.wall_s, 1),
        },
        bars=(
            Bar(
                what=f"peak memory, full-shape model {name} (random weights), {size} px",
                measured=peak_gb,
                unit="GB",
                limit=8.0,
                better="lower",
            ),
        ),
        seeds=(0,),
        protocol="one cold `vega generate`; peak resident memory of the process; 1 GB = 10^9 bytes",
    )


def make_folder(preset: str, folder: Path) -> Path:
    """Write a folder of full shape with random weights by the committed script."""
    if not SCRIPT.is_file():
        raise VegaError(f"full-shape: {SCRIPT} is not here; change to the repository's root, or give --folder")
    subprocess.run([sys.executable, str(SCRIPT), preset, str(folder)], check=True, stdout=sys.stderr)
    return folder
