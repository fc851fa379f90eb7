"""`vega export`: what a run trained, as a model folder that every program for SDXL loads."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import tyro

from vega_diffusion.cli.arguments import run_verb, text


def run(argv: list[str]) -> int:
    """Export one run."""
    return run_verb("export", export, argv)


def export(
    run: Annotated[str, tyro.conf.Positional, text("RUN")],
    folder: Annotated[str, tyro.conf.Positional, text("FOLDER")],
    /,
    name: Annotated[str | None, text("NAME", "that of the folder")] = None,
    precision: tuple[str, ...] = ("fp32", "fp16"),
    vae: Annotated[str | None, text("WHERE", "as the recipe says")] = None,
    text_encoder: Annotated[str | None, text("WHERE", "as the recipe says")] = None,
    text_encoder_2: Annotated[str | None, text("WHERE", "as the recipe says")] = None,
    scores: Annotated[str | None, text("RESULT")] = None,
    notes: str = "",
    json: bool = False,
) -> int:
    """Write a run's averaged weights and the frozen ones beside them in diffusers' layout, with a model card.

    Adapters are merged into the weights they were trained on; the file of adapters itself stays in the run's folder.

    Args:
        run: Name of a run in $VEGA_HOME/runs, with or without "run:".
        folder: Where the model goes; an older model there is replaced at the end.
        name: What the model is called.
        precision: Weight files: fp32, fp16 or both.
        vae: Other weights for the autoencoder: a folder, a known model, run:NAME.
        text_encoder: Other weights for the first text encoder.
        text_encoder_2: Other weights for the second text encoder.
        scores: Folder of a finished evaluation of this model, for the card.
        notes: Text for the card.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.evaluation.results import read_result
    from vega_diffusion.models.export import check_replaceable
    from vega_diffusion.models.measure import count_parameters
    from vega_diffusion.models.unet import build_unet
    from vega_diffusion.training.publish import check_precisions, export_run

    precisions = check_precisions(precision)
    result = None
    if scores is not None:
        result = jsonlib.loads(read_result(Path(scores).expanduser(), "--scores").to_json())
    place = Path(folder).expanduser()
    check_replaceable(place, "FOLDER")
    given = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    others = {component: where for component, where in given.items() if where is not None}
    called = name or place.resolve().name
    spec = export_run(run.removeprefix("run:"), place, called, precisions, notes, result, others)
    import torch

    with torch.device("meta"):
        parameters = count_parameters(build_unet(spec.unet))
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    report = {"folder": str(place), "name": called, "unet_parameters": parameters, "bytes": size}
    report["precisions"] = list(precisions)
    print(jsonlib.dumps(report) if json else f"{called}: U-Net of {parameters:,} parameters, {size:,} bytes in {place}")
    return 0
