"""One picture as `vega generate` draws it, by an engine whose int8 was made by a rule of its own; a command.

`vega generate` takes int8 that was made by the rule of `vega calibrate` alone. Models of random weights have another:
measuring which of their layers err most would say nothing.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
    from vega_diffusion.inference.images import GeneratedImage, OnStep
    from vega_diffusion.specs.request import GenerateRequest


def to_draw(model: Path, rule: QuantisationRule, request: dict[str, Any], dtype: str, folder: str) -> list[str]:
    """Return the arguments after `python -m`: the picture's file is in `folder`."""
    picture = str(Path(folder) / "picture.png")
    told = {"model": str(model), "rule": asdict(rule), "request": request, "dtype": dtype, "picture": picture}
    return [__name__, json.dumps(told)]


def draw(model: str, rule: dict[str, Any], request: dict[str, Any], dtype: str, picture: str) -> dict[str, Any]:
    """Draw, and return what `vega generate --json` says: the picture's file, seconds in all and to the first step.

    Args:
        model: A model folder.
        rule: Fields of a `QuantisationRule`.
        request: Fields of a `GenerateRequest`.
        dtype: As of `Engine.load`.
        picture: File to write.
    """
    from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
    from vega_diffusion.inference.lean.engine import LeanEngine
    from vega_diffusion.inference.metadata import write_png
    from vega_diffusion.specs.request import GenerateRequest

    start, steps = time.perf_counter(), list[float]()
    made_by = QuantisationRule(**{**rule, "left_out": tuple(rule["left_out"])})
    wanted = GenerateRequest.from_dict(request)

    def note(_: object) -> None:
        steps.append(time.perf_counter() - start)

    lean = LeanEngine.open(model, wanted, rule=made_by)
    (image,) = list(lean.stream(wanted, note)) if lean is not None else _by_engine(model, dtype, made_by, wanted, note)
    write_png(image.image, Path(picture), image.record, image.record.request.sampler or "")
    for line in image.warnings:
        print(line, file=sys.stderr)
    return {"images": [picture], "seconds": time.perf_counter() - start, "first_step_seconds": steps[0]}


def _by_engine(
    model: str, dtype: str, rule: QuantisationRule, request: GenerateRequest, note: OnStep
) -> list[GeneratedImage]:
    """Draw with torch, and leave what the next one needs to do without."""
    import torch

    from vega_diffusion.inference.bundles import keep_for_next_time
    from vega_diffusion.inference.engine import Engine

    engine = Engine.load(model, "cpu", dtype, rule=rule)
    drawn = engine.generate(request, note)
    keep_for_next_time(engine.components, drawn[0].record.request, torch.get_num_threads())
    return drawn


if __name__ == "__main__":
    print(json.dumps(draw(**json.loads(sys.argv[1]))))
