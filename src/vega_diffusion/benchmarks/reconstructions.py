"""Case `reconstructions`: how much of what the checker sees survives the autoencoder, which caps every model."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.checker import judge
from vega_diffusion.benchmarks.report import Bar, Measurement

if TYPE_CHECKING:
    from torch import Tensor

# No recipe draws its scenes from this seed.
SEED = 900_003
BATCH = 16


def measure(model: str = "vega-mini", num_scenes: int = 512, icons: str | None = None) -> Measurement:
    """Let the checker judge fresh scenes of the training styles before and after the autoencoder.

    Args:
        model: A name or a folder.
        num_scenes: Scenes, of seen and held-out combinations alike.
        icons: Folder that `vega data icons` filled; None looks where that command writes.
    """
    import torch

    from vega_diffusion.data.scene_checks import SceneChecks
    from vega_diffusion.data.scenes.scene import STYLES
    from vega_diffusion.inference.components import Components
    from vega_diffusion.models.checker import checker_digest, read_checker
    from vega_diffusion.specs.data import SceneChecksSpec
    from vega_diffusion.training.sources import load_atlas

    checker = read_checker()
    # diffusers types its calls as "a tuple or an output"
    vae: Any = Components.open(model, "cpu", "float32", None).vae()
    atlas, version = load_atlas(icons)
    # The autoencoder has never seen the held-out style: its loss there is no fault of the models'.
    clean = dict.fromkeys(("crowd_rate", "subject_rate", "filter_rate", "worn_rate", "spoiled_rate"), 0.0)
    spec = SceneChecksSpec.from_dict({"seed": SEED, "mix": {"styles": STYLES}, **clean})
    source = SceneChecks(spec, atlas, version)
    right: dict[str, list[bool]] = defaultdict(list)
    for first in range(0, num_scenes, BATCH):
        truth = source.load(range(first, min(first + BATCH, num_scenes))).tensors
        pixels = truth["pixels"]
        with torch.inference_mode():
            given_back = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        for name, pictures in (("original", pixels), ("reconstruction", as_file(given_back))):
            for row, finding in enumerate(checker.find(pictures)):
                verdicts = judge({key: value[row] for key, value in truth.items()}, finding)
                for what, values in verdicts.items():
                    right[f"{name}_{what}"] += values
    shares = {f"{what}_accuracy": round(fmean(values), 4) for what, values in sorted(right.items()) if values}
    kept = fmean(right["reconstruction_noun"]) / fmean(right["original_noun"])
    return Measurement(
        samples={what: [float(value) for value in values] for what, values in sorted(right.items())},
        summary=shares
        | {"num_scenes": num_scenes, "model": model, "icons": version, "checker_sha256": checker_digest()[:16]},
        bars=(
            Bar(
                what="autoencoder: objects still recognised, of those recognised before",
                measured=round(kept, 4),
                unit="kept",
                limit=0.97,
                better="higher",
            ),
        ),
        seeds=(SEED,),
        protocol="object accuracy of the checker on reconstructions (posterior's mode, float32, 8-bit levels) divided "
        "by that on the originals; an object is right when the nearest detection within half its size is",
    )


def as_file(pixels: Tensor) -> Tensor:
    """Return pictures as a file would hold them: clamped, in 256 levels."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
