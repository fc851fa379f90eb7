r"""Put components of several training runs and models together into a model folder of the published layout.

    python scripts/publish_model.py vega-mini src/vega_diffusion/assets/vega-mini \\
        --unet run:vega-mini-denoise-cpu --text run:vega-mini-joint-cpu --vae run:autoencoder-mini-cpu

`vega export` does the same for one run with the weights that its recipe names.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vega_diffusion.data.scenes.tokenizer import load_tokenizer
from vega_diffusion.errors import run_script
from vega_diffusion.evaluation.results import read_result
from vega_diffusion.models.tokenizer import TokenizerFiles
from vega_diffusion.specs.presets import preset
from vega_diffusion.training.publish import publish


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and publish."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="preset of the model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unet", required=True, help="weights of the U-Net: run:NAME, a known model or a model folder")
    parser.add_argument("--text", required=True, help="weights of the text encoders, likewise")
    parser.add_argument("--vae", required=True, help="weights of the autoencoder, likewise")
    parser.add_argument("--notes", default="", help="text for card and record")
    parser.add_argument("--vae-tiny", help="weights of a tiny autoencoder to put beside it, likewise; none by default")
    parser.add_argument("--scores", type=Path, help="folder of a finished evaluation of these weights, for the card")
    given = parser.parse_args(argv)
    references = {"unet": given.unet, "text_encoder": given.text, "text_encoder_2": given.text, "vae": given.vae}
    if given.vae_tiny is not None:
        references["vae_tiny"] = given.vae_tiny
    tokenizers = (TokenizerFiles.of(load_tokenizer()), TokenizerFiles.of(load_tokenizer(second=True)))

    def work() -> Path:
        scores = None if given.scores is None else json.loads(read_result(given.scores, "--scores").to_json())
        publish(preset(given.name), given.folder, given.name, references, tokenizers, notes=given.notes, scores=scores)
        return given.folder

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
