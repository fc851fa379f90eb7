"""`vega calibrate`: the int8 U-Net and decoder of a model, which profiles then draw with."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.inference.backends.store import INDEX


def run(argv: list[str]) -> int:
    """Calibrate one model."""
    return run_verb("calibrate", calibrate, argv)


def calibrate(model: Annotated[str, tyro.conf.Positional, text("NAME|FOLDER|HUB-ID")], /, json: bool = False) -> int:
    """Make the int8 U-Net and decoder of a model; the profiles turbo and realtime draw with them from then on.

    Pictures are drawn to see what the networks are asked, every layer's error is measured, and those that the rule
    leaves out stay in wide numbers. It takes minutes for the embedded model and hours at full size. It pays for
    large models on CPUs with 8-bit instructions (VNNI, AMX); vega-mini gets no faster. Removing a folder that is
    named at the end undoes it. Needs the extra openvino.

    Args:
        model: A name, a diffusers folder or a Hub id.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.specs.profile import PROFILES

    start = time.perf_counter()
    engine = Engine.load(model, device="cpu")
    folders = engine.calibrate(lambda line: print(line, file=sys.stderr))
    profiles = [name for name, profile in PROFILES.items() if any(r.precision == "int8" for r in profile.routes)]
    parts = {what: _part(folder) for what, folder in folders.items()}
    report = {"model": model, "seconds": round(time.perf_counter() - start, 1), "parts": parts, "profiles": profiles}
    print(jsonlib.dumps(report) if json else _told(report))
    return 0


def _part(folder: Path) -> dict[str, Any]:
    """Return where a network lies, how much of its work is not 8-bit, and what error the rule expects of the rest."""
    (report,) = (file for file in folder.glob("*.json") if file.name != INDEX)
    told = jsonlib.loads(report.read_text())
    kept, rest = told["kept_in_higher_precision"], told["quantised"]
    error = sum(group["error"] for group in rest) ** 0.5
    size = sum(file.stat().st_size for file in folder.iterdir())
    share = sum(group["work"] for group in kept)
    return {"folder": str(folder), "bytes": size, "work_in_wide_numbers": share, "expected_error": error}


def _told(report: dict[str, Any]) -> str:
    profiles, model = report["profiles"], report["model"]
    lines = [
        f"{model}: int8 {what} in {part['folder']} ({part['bytes'] / 1e6:.1f} MB)\n"
        f"{100 * part['work_in_wide_numbers']:.0f} % of its work stays in wide numbers; expected error of an answer "
        f"{part['expected_error']:.4f}\n"
        for what, part in report["parts"].items()
    ]
    return (
        f"{''.join(lines)}made in {report['seconds']:.0f} s\n"
        f"{', '.join(profiles)} draw with it from now on; measure what that costs: vega benchmark certify "
        f"--model {model} --profile {profiles[0]}"
    )
