"""A teacher's folder becomes the folder of its untrained student: the U-Net carved, everything else taken over."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.checkpoint import load_unet
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.export import new_folder, write_description, write_weights
from vega_diffusion.models.layout import MODEL_INDEX, PIPELINE_COMPONENTS, find_weights
from vega_diffusion.models.surgery import Surgery, account, carve
from vega_diffusion.models.tiny_folder import take_tiny_along
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.layer_map import LayerMap
from vega_diffusion.specs.presets import PRESETS

_CARD = """---
library_name: diffusers
tags: [text-to-image, stable-diffusion-xl]
---

# {name}

The blocks that the layer map `{layers}` keeps of {teacher}. **It is not trained since**: pictures will be poor until
it is distilled. Text encoders, autoencoder and licence are those of {teacher}.
"""


def carve_model(folder: Path, layers: LayerMap, output: Path, teacher: str, seed: int = 0) -> tuple[ModelSpec, Surgery]:
    """Write the student that a map cuts out of a model folder; the folder appears complete or not at all.

    Args:
        folder: The teacher's model folder.
        layers: The map.
        output: The student's folder; an older one is replaced at the end.
        teacher: What to call the teacher in the card and in `vega.json`.
        seed: Decides the fresh weights of new blocks.

    Returns:
        The student's spec and the account of its tensors.

    Raises:
        InvalidValue: The map does not fit the teacher, or `output` is a folder of something else.
        VegaError: The teacher cannot be read, or the student not be written.
    """
    whole = load_spec(folder)
    if output.resolve() == folder.resolve() or (output.exists() and not (output / MODEL_INDEX).is_file()):
        raise InvalidValue("output", str(output), "a new folder, or an older student's", "choose another place")
    unet = layers.student_spec(whole.unet)
    precision = find_weights(folder, "unet").precision
    weights = load_unet(folder, whole.unet).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student, surgery = carve(layers, unet, whole.unet, weights)
    known = next(
        (spec for spec in PRESETS.values() if spec.family == whole.family and spec.unet.same_network(unet)), None
    )
    generation = whole.generation if known is None else known.generation
    name = output.resolve().name
    spec = whole.model_copy(update={"name": name, "unet": unet, "generation": generation})
    provenance = {
        "teacher": teacher,
        "map": layers.model_dump(mode="json"),
        "tensors": account(surgery),
        "trained": False,
    }
    with new_folder(output) as place:
        for component in PIPELINE_COMPONENTS:
            if component not in ("unet", "scheduler"):
                shutil.copytree(folder / component, place / component)
        take_tiny_along(folder, place)
        write_weights(place, "unet", student, (precision,))
        write_description(place, spec, provenance, _CARD.format(name=name, layers=layers.name, teacher=teacher))
    return spec, surgery
