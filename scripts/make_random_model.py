"""Write a full-shape model folder with random weights: for checks of speed, memory and loading, never for pictures.

    python scripts/make_random_model.py vega /tmp/random-vega

The folder has the published layout (fp16 files), the real shapes of every component, and says in its card and in
`vega.json` that its weights are random. Components are made and written one after another, so that memory stays at
about the largest one at fp16. The tokenizer is the byte part of CLIP's vocabulary: real ids, no download.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path

import torch

from vega_diffusion.errors import InvalidValue, run_script
from vega_diffusion.models.build import build_component
from vega_diffusion.models.export import new_folder, write_description, write_weights
from vega_diffusion.models.layout import WeightName
from vega_diffusion.models.tokenizer import byte_tokenizer
from vega_diffusion.specs.presets import PRESETS, preset

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [random-weights]
---

# {name} with random weights

**These weights are random numbers.** The folder has the exact shapes of the architecture `{name}` and serves to measure
speed, memory and loading. What it draws is noise; no figure about picture quality may come from it.

Made by `python scripts/make_random_model.py {name} FOLDER --seed {seed}`.
"""


def make(name: str, folder: str, seed: int) -> Path:
    """Write a model folder of a preset's exact shape with random weights.

    Args:
        name: A preset with two text encoders, such as vega, sdxl or vega-mini.
        folder: Where to write; nothing may be there yet.
        seed: Seed of the random weights.

    Raises:
        VegaError: Unknown or unsuitable preset, an existing folder, a full disk.
    """
    spec = preset(name)
    if not spec.is_sdxl_shaped:
        shaped = ", ".join(known for known, other in PRESETS.items() if other.is_sdxl_shaped)
        raise InvalidValue("name", name, f"one of: {shaped}", "choose one of them")
    target = Path(folder)
    if target.exists():
        raise InvalidValue("folder", folder, "a path where nothing is yet", "choose another or remove it yourself")
    spec = spec.model_copy(update={"name": f"{name}-random"})
    torch.manual_seed(seed)
    started = time.monotonic()
    components: tuple[WeightName, ...] = ("text_encoder", "text_encoder_2", "unet", "vae")
    with new_folder(target) as place:
        for component in components:
            print(f"{component} ...", file=sys.stderr)
            # Made at fp16 from the start: fp32 would double the memory for numbers that mean nothing.
            torch.set_default_dtype(torch.float16)
            try:
                module = build_component(spec, component)
            finally:
                torch.set_default_dtype(torch.float32)
            write_weights(place, component, module, ("fp16",))
            del module
            gc.collect()
        byte_tokenizer(spec.text_encoder.vocab_size).write(place / "tokenizer")
        second = spec.text_encoder_2
        assert second is not None, "checked above"
        byte_tokenizer(second.vocab_size, "!").write(place / "tokenizer_2")
        provenance = {"weights": "random", "made_by": "scripts/make_random_model.py", "seed": seed}
        write_description(place, spec, provenance, CARD.format(name=name, seed=seed))
    print(f"{time.monotonic() - started:.1f} s", file=sys.stderr)
    return target


def main() -> int:
    """Read the arguments, write the folder, print its path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="a preset with two text encoders, such as vega or sdxl")
    parser.add_argument("folder", help="where to write; nothing may be there yet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    arguments = parser.parse_args()
    return run_script(lambda: make(arguments.name, arguments.folder, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
