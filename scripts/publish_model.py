r"""Put the averaged weights of training runs together into a model folder of the published layout.

    python scripts/publish_model.py vega-mini src/vega_diffusion/assets/vega-mini \\
        --unet run:vega-mini-denoise-cpu --text run:vega-mini-joint-cpu --vae run:autoencoder-mini-cpu

The folder's `vega.json` and card say which recipes made each component, how many steps and samples they took and from
which weights they started, so that nobody has to take the numbers on trust.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vega_diffusion.data.scenes.tokenizer import load_tokenizer
from vega_diffusion.errors import MissingFile, VegaError, run_script
from vega_diffusion.models.build import build_component
from vega_diffusion.models.checker import RECORD
from vega_diffusion.models.export import ModelParts, save_model
from vega_diffusion.models.find import resolve_model
from vega_diffusion.models.layout import read_json
from vega_diffusion.models.tokenizer import TokenizerFiles
from vega_diffusion.specs.presets import preset
from vega_diffusion.training.components import load_weights, locate
from vega_diffusion.training.run_directory import RunDirectory

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [text-to-image, stable-diffusion-xl, distilled]
---

# {name}

A miniature of the SDXL family: the block topology of the full-size architecture at a tenth of its width, 128 px
pictures, trained on captioned scenes composed from openly licensed emoji art. It draws the objects, colours, counts,
relations, backgrounds and drawing styles of those scenes. It is no photographic model and knows no other subject.

Artwork behind the weights: Fluent Emoji (MIT, Microsoft), Noto Emoji (Apache-2.0, Google), Twemoji (CC-BY 4.0, Twitter,
Inc and other contributors, modified). See NOTICE in the project.

| component | run | optimizer steps | samples |
|---|---|---|---|
{rows}
"""


def component_record(reference: str, component: str) -> dict[str, Any]:
    """Return how a component's weights were made, and before that the weights they started from, as far back as known.

    Args:
        reference: `run:NAME`, or a known model or model folder whose `vega.json` tells.
        component: Name of the component.

    Raises:
        MissingFile: The run has no recipe or no saved state, or the folder does not tell.
    """
    if not reference.startswith("run:"):
        if component == "checker":  # a folder of its own, whose record tells
            return read_json(Path(reference) / RECORD)["provenance"]
        try:
            return read_json(resolve_model(reference) / "vega.json")["provenance"]["components"][component]
        except (VegaError, KeyError) as error:
            raise MissingFile(f"{reference}: nothing about its {component} in vega.json; publish from a run") from error
    directory = RunDirectory(reference.removeprefix("run:"))
    try:
        recipe = json.loads(directory.recipe.read_text(encoding="utf-8"))
        newest = max(directory.states.glob("step-*"))
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingFile(f"{reference}: no recipe or state in {directory.path}; train that recipe first") from error
    steps = state["step"]
    record = {"run": directory.name, "steps": steps, "samples": steps * recipe["batch_size"], "recipe": recipe}
    model = recipe["model"]
    start = state["init_from"] or (model["weights"] | model.get("grow_from", {})).get(component)
    return record | ({"started_from": component_record(start, component)} if start else {})


def stages(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a component's runs, first one first."""
    before = stages(record["started_from"]) if "started_from" in record else []
    return [*before, record]


def publish(name: str, folder: Path, references: dict[str, str], notes: str) -> Path:
    """Write the model and return its folder.

    Args:
        name: Preset of the model.
        folder: Where it goes; an older folder there is replaced at the end.
        references: Component -> where its weights are: `run:NAME`, a known model or a model folder.
        notes: Free text for the provenance.

    Raises:
        VegaError: Weights are not there or do not fit, or the folder cannot be written.
    """
    spec = preset(name)
    config = read_json(locate(references["vae"], "vae").parent / "config.json")
    autoencoder = spec.autoencoder.model_copy(update={"scaling_factor": float(config["scaling_factor"])})
    spec = spec.model_copy(update={"autoencoder": autoencoder})
    modules: dict[str, Any] = {component: build_component(spec, component) for component in references}
    for component, module in modules.items():
        load_weights(module, component, locate(references[component], component))
    parts = ModelParts(
        unet=modules["unet"],
        autoencoder=modules["vae"],
        text_encoder=modules["text_encoder"],
        text_encoder_2=modules["text_encoder_2"],
        tokenizer=TokenizerFiles.of(load_tokenizer()),
        tokenizer_2=TokenizerFiles.of(load_tokenizer(second=True)),
    )
    records = {component: component_record(reference, component) for component, reference in references.items()}
    rows = "\n".join(
        f"| {component} | {stage['run']} | {stage['steps']:,} | {stage['samples']:,} |"
        for component, record in records.items()
        for stage in stages(record)
    )
    provenance = {"components": records, "notes": notes}
    save_model(folder, spec, parts, ("fp16",), provenance, CARD.format(name=name, rows=rows))
    return folder


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unet", required=True, help="weights of the U-Net: run:NAME, a known model or a model folder")
    parser.add_argument("--text", required=True, help="weights of the text encoders, likewise")
    parser.add_argument("--vae", required=True, help="weights of the autoencoder, likewise")
    parser.add_argument("--notes", default="", help="text for the provenance")
    given = parser.parse_args(argv)
    references = {"unet": given.unet, "text_encoder": given.text, "text_encoder_2": given.text, "vae": given.vae}
    return run_script(lambda: publish(given.name, given.folder, references, given.notes))


if __name__ == "__main__":
    sys.exit(main())
