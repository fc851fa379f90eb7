"""Samples during a run: what the student makes now, as a picture in the run's folder and numbers in its log."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vega_diffusion.data.batches import BatchSource
from vega_diffusion.data.scene_stream import scene_mix
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.objectives.autoencoding import per_sample_mean, psnr
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.loop import SampleFunction
from vega_diffusion.training.picture_grid import save_grid
from vega_diffusion.training.previews import HELD_OUT_SEED, previews
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sources import load_atlas
from vega_diffusion.training.student import Student

COUNT = 16

SampleMaker = Callable[[ModelSpec, RunDirectory, BatchSource], SampleFunction]


def sample_maker(recipe: TrainRecipe) -> SampleMaker | None:
    """Return what makes the sample function of a recipe, or None where there is nothing to see."""
    if recipe.sample_every is None:
        return None
    match recipe.objective.kind:
        case "autoencoding":
            return partial(_reconstructions, recipe)
        case "denoising" | "distillation":
            return partial(previews, recipe)
        case _:
            return None


def _reconstructions(
    recipe: TrainRecipe, spec: ModelSpec, directory: RunDirectory, source: BatchSource
) -> SampleFunction:
    """Held-out scenes, original above reconstruction, and the mean PSNR in dB."""
    assert not isinstance(recipe.data, ImageLatentsSpec), "autoencoders learn from scenes"
    atlas, _ = load_atlas(recipe.data.icons)
    mix = scene_mix(recipe.data.mix)
    scenes = [sample_scene(HELD_OUT_SEED, position, split="held-out", mix=mix) for position in range(COUNT)]
    pixels = SceneRenderer(atlas).render(scenes)

    def sample(step: int, student: Student) -> dict[str, float]:
        vae = student.get_submodule("vae")
        device = next(vae.parameters()).device
        mean = vae.encode(pixels.to(device)).latent_dist.mean  # type: ignore[operator]
        shown = vae.decode(mean).sample.float().clamp(-1, 1).cpu()  # type: ignore[operator]
        save_grid([pixels[:8], shown[:8], pixels[8:], shown[8:]], directory.samples / f"step-{step:08d}.png")
        return {"held_out_psnr": float(psnr(per_sample_mean((shown - pixels).square())).mean())}

    return sample
