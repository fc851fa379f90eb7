r"""Put the averaged weights of training runs together into a model folder of the published layout.

    python scripts/publish_model.py vega-mini src/vega_diffusion/assets/vega-mini \\
        --unet vega-mini-denoise-cpu --text text-mini-cpu --vae autoencoder-mini-cpu

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
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.export import ModelParts, save_model
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.tokenizer import TokenizerFiles
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import preset
from vega_diffusion.training.components import load_weights, locate
from vega_diffusion.training.run_directory import RunDirectory, run_weights

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


def run_record(name: str) -> dict[str, Any]:
    """Return what a run's folder says about how its weights were made.

    Raises:
        MissingFile: The run has no recipe or no saved state.
    """
    directory = RunDirectory(name)
    try:
        recipe = json.loads(directory.recipe.read_text(encoding="utf-8"))
        steps = max(int(path.name.removeprefix("step-")) for path in directory.states.glob("step-*"))
    except (OSError, ValueError) as error:
        raise MissingFile(f"run {name}: no recipe or state in {directory.path}; train that recipe first") from error
    return {"run": name, "steps": steps, "samples": steps * recipe["batch_size"], "recipe": recipe}


def publish(name: str, folder: Path, runs: dict[str, str], notes: str) -> None:
    """Write the model.

    Args:
        name: Preset of the model.
        folder: Where it goes; an older folder there is replaced at the end.
        runs: Component -> run that holds its averaged weights.
        notes: Free text for the provenance (for example where a run started from).

    Raises:
        VegaError: A run's weights are not there or do not fit, or the folder cannot be written.
    """
    spec = preset(name)
    assert spec.text_encoder_2 is not None, "the mini family has two text encoders"
    vae_folder = run_weights(runs["vae"], "vae")
    config = json.loads((vae_folder / "config.json").read_text(encoding="utf-8"))
    autoencoder = build_autoencoder(
        spec.autoencoder.model_copy(update={"scaling_factor": float(config["scaling_factor"])})
    )
    parts = ModelParts(
        unet=build_unet(spec.unet),
        autoencoder=autoencoder,
        text_encoder=build_text_encoder(spec.text_encoder),
        text_encoder_2=build_text_encoder(spec.text_encoder_2),
        tokenizer=TokenizerFiles.of(load_tokenizer()),
        tokenizer_2=TokenizerFiles.of(load_tokenizer(second=True)),
    )
    modules = {
        "unet": parts.unet,
        "vae": parts.autoencoder,
        "text_encoder": parts.text_encoder,
        "text_encoder_2": parts.text_encoder_2,
    }
    for component, module in modules.items():
        load_weights(module, component, locate(f"run:{runs[component]}", component))
    records = {component: run_record(run) for component, run in runs.items()}
    rows = "\n".join(
        f"| {component} | {record['run']} | {record['steps']:,} | {record['samples']:,} |"
        for component, record in records.items()
    )
    provenance = {"components": records, "notes": notes}
    save_model(folder, spec, parts, ("fp16",), provenance, CARD.format(name=name, rows=rows))


def main() -> int:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unet", required=True, help="run that holds the U-Net")
    parser.add_argument("--text", required=True, help="run that holds the text encoders")
    parser.add_argument("--vae", required=True, help="run that holds the autoencoder")
    parser.add_argument("--notes", default="", help="text for the provenance")
    given = parser.parse_args()
    runs = {"unet": given.unet, "text_encoder": given.text, "text_encoder_2": given.text, "vae": given.vae}
    try:
        publish(given.name, given.folder, runs, given.notes)
    except VegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
