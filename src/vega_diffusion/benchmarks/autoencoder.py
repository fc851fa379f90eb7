"""Case `autoencoder`: how faithfully a model's autoencoder gives back scenes that training never showed."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.report import Bar, Measurement

if TYPE_CHECKING:
    from torch import Tensor

# No recipe draws its scenes from this seed.
SEED = 900_001
BATCH = 16


def measure(model: str = "vega-mini", num_scenes: int = 512, icons: str | None = None) -> Measurement:
    """Encode scenes to the posterior's mode, decode, and compare, all in float32.

    Args:
        model: A name or a folder.
        num_scenes: Scenes, each with at least one combination of things that training never shows.
        icons: Folder that `vega data icons` filled; None takes the sample in the package.
    """
    import torch

    from vega_diffusion.data.scenes.atlas import SpriteAtlas
    from vega_diffusion.data.scenes.grammar import sample_scene
    from vega_diffusion.data.scenes.renderer import SceneRenderer
    from vega_diffusion.inference.components import Components
    from vega_diffusion.training.sources import load_atlas

    # diffusers types its calls as "a tuple or an output"
    vae: Any = Components.open(model, "cpu", "float32", None).vae()
    renderer = SceneRenderer(SpriteAtlas.load(Path(icons) if icons else None))
    values: list[float] = []
    for first in range(0, num_scenes, BATCH):
        positions = range(first, min(first + BATCH, num_scenes))
        pixels = renderer.render([sample_scene(SEED, position, split="held-out") for position in positions])
        with torch.inference_mode():
            values += psnr_db(vae.decode(vae.encode(pixels).latent_dist.mode()).sample, pixels).tolist()
    mean = fmean(values)
    return Measurement(
        samples={"psnr_db": [round(value, 3) for value in values]},
        summary={
            "mean_psnr_db": round(mean, 3),
            "first_decile_psnr_db": round(quantiles(values, n=10)[0], 3),
            "num_scenes": num_scenes,
            "model": model,
            "icons": load_atlas(icons)[1] if icons else "sample",
        },
        bars=(Bar(what="autoencoder, held-out scenes", measured=mean, unit="dB PSNR", limit=27.0, better="higher"),),
        seeds=(SEED,),
        protocol="mean over pictures of the PSNR of each; split held-out; mode of the posterior; float32",
    )


def psnr_db(images: Tensor, references: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture, 10 log10(2^2 / mse), in dB.

    Args:
        images: `[B, 3, H, W]`, clamped to -1..1 as a picture file would.
        references: The same shape, in -1..1.
    """
    mse = (images.clamp(-1, 1) - references).square().mean(dim=(1, 2, 3))
    return 10 * (4 / mse.clamp_min(1e-12)).log10()
