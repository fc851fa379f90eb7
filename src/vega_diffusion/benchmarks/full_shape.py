"""Case `full-shape`: a folder of Segmind-Vega's full shape with random weights loads and makes a picture.

The weights are random, so the picture shows nothing: this case is about memory, shapes and seconds only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vega_diffusion.benchmarks.draw_once import to_draw
from vega_diffusion.benchmarks.protocol import run_command
from vega_diffusion.benchmarks.random_int8 import layers_left_out, random_rule
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.specs.profile import OpenVinoPrecision, ProfileName

SCRIPT = Path("scripts") / "make_random_model.py"
# Most GB of a command, by profile and by the precision of its U-Net at 1024 px; of `exact` at 512 px.
MOST_GB = {"exact": 8.0}
MOST_GB_AT_1024 = {"int8": 3.5, "bf16": 6.0}
FIRST_STEP_S = 5.0
CELLS = 8  # a side of the latents that int8 is made from


def measure(
    folder: str | None = None,
    preset: str = "vega",
    size: int = 512,
    num_steps: int = 2,
    dtype: str = "auto",
    profile: ProfileName = "exact",
    precision: OpenVinoPrecision | None = None,
    layers_of: str = "vega-mini",
) -> Measurement:
    """Run `vega generate` on a full-shape folder and note its peak memory, and when its first step was done.

    By a profile on OpenVINO the command runs twice, and the second one, which finds its networks kept, counts. For int8
    they are made before, from random questions (what random weights draw would be no better ones, and takes hours), and
    the layers that stay out are those of a calibrated model with trained weights.

    Args:
        folder: A folder made before by `scripts/make_random_model.py`; None makes one and removes it afterwards.
        preset: Architecture of the folder to make.
        size: Width and height of the picture, px.
        num_steps: Sampler steps; memory does not depend on them.
        dtype: As of `vega generate`.
        profile: As of `vega generate`.
        precision: As of `vega generate`.
        layers_of: For int8: a model of the same topology that was calibrated here (`vega calibrate`).

    Raises:
        BackendFault: That model was not calibrated.
        VegaError: The script is not there: the current folder is not the repository's root.
    """
    from vega_diffusion.inference.metadata import read_record
    from vega_diffusion.models.detect import load_spec

    with tempfile.TemporaryDirectory() as temporary:
        model = Path(folder) if folder else make_folder(preset, Path(temporary) / f"random-{preset}")
        command = ["vega_diffusion.cli.main", "generate", "a cat", "--model", str(model), "--seed", "0"]
        command += ["--width", str(size), "--height", str(size), "--num-steps", str(num_steps), "--dtype", dtype]
        command += ["--profile", profile, "--json", "--output", temporary]
        if precision == "int8":
            rule = random_rule(layers_left_out(layers_of))
            calibrate_at_random(model, rule)
            asked = {"prompt": "a cat", "seed": 0, "width": size, "height": size, "num_steps": num_steps}
            command = to_draw(model, rule, asked | {"profile": profile, "precision": precision}, dtype, temporary)
        elif precision is not None:
            command += ["--precision", precision]
        run = run_command(command)
        if profile != "exact":
            run = run_command(command)
        told = json.loads(run.stdout.splitlines()[-1])
        ran = str(read_record(Path(told["images"][0])).precision)
        name = load_spec(model).name
        weights = sum(path.stat().st_size for path in model.rglob("*.safetensors"))
    peak_gb = run.peak_bytes / 1e9
    # What lies before and after the drawing, an interpreter's start above all, is counted to the first step.
    first_step = run.timing.wall_s - told["seconds"] + told["first_step_seconds"]
    kept = None if profile == "exact" else first_step  # a profile's networks are kept, and have a goal
    most = MOST_GB.get(profile) if size <= 512 else MOST_GB_AT_1024.get(ran)
    return Measurement(
        samples={
            "wall_s": [run.timing.wall_s],
            "first_step_s": [first_step],
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
            "first_step_s": round(first_step, 2),
            "profile": profile,
            "precision": ran,
        },
        bars=tuple(_bars(f"full-shape model {name} (random weights), {profile} {ran}, {size} px", most, peak_gb, kept)),
        seeds=(0,),
        name="" if profile == "exact" else f"{profile}-{ran}-{size}",
        protocol="one cold `vega generate`; peak resident memory of the process; 1 GB = 10^9 bytes"
        + (f"; drawn as it draws, in int8 but for layers of {layers_of}'s choice" if precision == "int8" else ""),
    )


def _bars(what: str, most_gb: float | None, peak_gb: float, first_step: float | None) -> Iterator[Bar]:
    if most_gb is not None:
        yield Bar(what=f"peak memory, {what}", measured=peak_gb, unit="GB", limit=most_gb, better="lower")
    if first_step is not None:
        said = f"start to first step, {what}"
        yield Bar(what=said, measured=first_step, unit="s", limit=FIRST_STEP_S, better="lower")


def calibrate_at_random(folder: Path, rule: QuantisationRule) -> None:
    """Make a folder's int8 U-Net and decoder from random questions of small pictures, where they are not kept."""
    import torch

    from vega_diffusion.benchmarks.contestants import random_question
    from vega_diffusion.inference.adapters import Adapters
    from vega_diffusion.inference.backends.calibration import Drawn
    from vega_diffusion.inference.components import Components
    from vega_diffusion.inference.routes import Routes

    components = Components.open(str(folder), "cpu", "auto", None)
    spec = components.spec

    def draw(count: int) -> Drawn:
        steps = [1000.0 * (number + 0.5) / count for number in reversed(range(count))]
        latents = torch.randn(CELLS, spec.autoencoder.latent_channels, CELLS, CELLS)
        return Drawn([random_question(spec, CELLS, 1, t) for t in steps], list(latents.split(1)))

    Routes(components, Adapters(components), draw, rule).calibrate(
        lambda line: print(line, file=sys.stderr, flush=True)
    )


def make_folder(preset: str, folder: Path) -> Path:
    """Write a folder of full shape with random weights by the committed script."""
    if not SCRIPT.is_file():
        raise VegaError(f"full-shape: {SCRIPT} is not here; change to the repository's root, or give --folder")
    subprocess.run([sys.executable, str(SCRIPT), preset, str(folder)], check=True, stdout=sys.stderr)
    return folder
