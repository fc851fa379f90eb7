"""Our losses and weights are those of diffusers' own components, step by step: LoRA, full fine-tune, DreamBooth LoRA.

The reference shares with our run what a run is given: pictures in their order, captions, the first weights of adapters,
and the draws of timesteps and noise (`PositionRng`). All else is diffusers, transformers, peft and torch. Tolerances,
fp32: losses 1e-5 of their size, weights 1e-3 of the way that they have gone. What both are computed from is rounded to
fp16 first, as the caches of latents and captions hold it; without that rounding losses agree to 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vega_diffusion.benchmarks.adapting_loops import Components, Pictures
from vega_diffusion.benchmarks.adapting_speed import Setting, recipe_of, write_pictures
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.metrics import read_metrics
from vega_diffusion.training.run import build_parts, run_recipe
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sources import build_source

STEPS, BATCH, SIDE = 3, 2, 64
LOSS, WEIGHTS, UNROUNDED = 1e-5, 1e-3, 1e-4
Rounding = Callable[[Tensor], Tensor]


def half(values: Tensor) -> Tensor:
    """What a cache keeps."""
    return values.half().float()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("reference")
    write_pictures(home, 4)
    return home


@pytest.fixture
def ours(pictures: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a job by our loop; gives the setting, the recipe, the run's folder and the loss of every step."""
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))

    def run(job: str) -> tuple[Setting, TrainRecipe, RunDirectory, list[float]]:
        setting = Setting(
            model=str(tiny_folder),
            pictures=str(pictures / ("bare" if job == "dreambooth" else "captioned")),
            class_pictures=str(pictures / "class"),
            output=str(tmp_path / "reference"),
            steps=STEPS,
            batch=BATCH,
            resolution_px=SIDE,
            lr=1e-3,
            prior_weight=0.5,
        )
        recipe = TrainRecipe.from_dict(recipe_of(job, setting).model_dump(mode="json") | {"log_every": 1})
        directory = RunDirectory(job)
        run_recipe(recipe, directory, warn=print, device="cpu")
        return setting, recipe, directory, [line["loss"] for line in read_metrics(directory.metrics)]

    return run


class Reference:
    """A job of our loop once more, by diffusers' components."""

    def __init__(self, job: str, setting: Setting, recipe: TrainRecipe) -> None:
        self.recipe, self.parts = recipe, Components(setting.model)
        built = build_parts(recipe)
        self.source = build_source(recipe, built.spec, torch.device("cpu"), built.frozen)
        if job == "full":
            self.learns = list(self.parts.unet.requires_grad_(True).parameters())
        else:
            self.learns = self.parts.adapted(setting.rank)
            first = built.student.get_submodule("unet").state_dict()
            adapters = {name: value for name, value in first.items() if ".lora_" in name}
            assert self.parts.unet.load_state_dict(adapters, strict=False).unexpected_keys == []
        self.first = [value.detach().clone() for value in self.learns]
        self.folders = [Path(setting.pictures)] + ([Path(setting.class_pictures)] if job == "dreambooth" else [])
        self.captions = [setting.caption, setting.class_caption] if job == "dreambooth" else None

    def errors(self, step: int, rounded: Rounding = half) -> Tensor:
        """Each sample's mean squared error at a step, before its weights move."""
        count, parts = self.recipe.batch_size, self.parts
        positions = list(range(step * count, (step + 1) * count))
        batch = self.source.load(positions)
        pixels, ids, texts = [], [], []
        for row, (position, name) in enumerate(zip(positions, batch.sample_ids, strict=True)):
            side = position % len(self.folders)
            path = self.folders[side] / name
            sample = Pictures([path], [""], SIDE)[0]
            with Image.open(path) as picture:
                assert picture.size == (128, 128)
            assert sample["time_ids"].tolist() == [128, 128, 0, 0, SIDE, SIDE]
            pixels.append(sample["pixels"])
            ids.append(sample["time_ids"])
            texts.append((batch.captions or [])[row] if self.captions is None else self.captions[side])
        # The random numbers are the run's; what they are for is said here anew.
        posterior, drawn = [], PositionRng(derive_seed(self.recipe.seed, "objective"), positions)
        for row, position in enumerate(positions):
            at = position // len(self.folders)
            own = PositionRng(derive_seed(0, "samples"), [at]).normal((4, SIDE // 8, SIDE // 8), "posterior")
            with torch.no_grad():
                found = parts.vae.encode(pixels[row][None]).latent_dist
            posterior.append(rounded(found.mean) + rounded(found.std) * own)
        latents = torch.cat(posterior) * parts.vae.config.scaling_factor
        timesteps, noise = drawn.integers(0, 1000, "timestep"), drawn.normal(latents.shape[1:], "noise")
        with torch.no_grad():
            prompt, pooled = (rounded(values) for values in parts.texts(parts.tokens(texts)))
        noisy = parts.noising.add_noise(latents, noise, timesteps)
        added = {"time_ids": torch.stack(ids), "text_embeds": pooled}
        predicted = parts.unet(noisy, timesteps, prompt, added_cond_kwargs=added).sample
        return (predicted - noise).square().flatten(1).mean(1)

    def train(self, total: Callable[[Tensor], Tensor]) -> list[float]:
        """Return the loss of every step and move the weights."""
        optimizer = torch.optim.AdamW(self.learns, lr=self.recipe.optimizer.lr, weight_decay=1e-2)
        losses = []
        for step in range(STEPS):
            loss = total(self.errors(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.learns, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def way(self) -> float:
        """How far the weights have gone."""
        return _length([now.detach() - then for now, then in zip(self.learns, self.first, strict=True)])


def _length(values: list[Tensor]) -> float:
    return float(torch.stack([value.norm() for value in values]).norm())


def _difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert mine.keys() == theirs.keys()
    return _length([mine[name] - theirs[name] for name in mine])


def test_lora_is_diffusers_own_step_by_step(ours: Any) -> None:
    setting, recipe, directory, losses = ours("lora")
    reference = Reference("lora", setting, recipe)
    unrounded = reference.errors(0, lambda values: values).mean().item()
    assert losses == pytest.approx(reference.train(Tensor.mean), rel=LOSS)
    assert losses[0] == pytest.approx(unrounded, rel=UNROUNDED)
    reference.parts.save_adapters(setting.output)
    files = (directory.ema, Path(setting.output))
    mine, theirs = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in files)
    assert len(mine) > 100
    assert _difference(mine, theirs) < WEIGHTS * reference.way()


def test_full_fine_tune_is_diffusers_own_step_by_step(ours: Any) -> None:
    setting, recipe, directory, losses = ours("full")
    reference = Reference("full", setting, recipe)
    assert losses == pytest.approx(reference.train(Tensor.mean), rel=LOSS)
    mine = load_file(directory.ema / "unet/diffusion_pytorch_model.safetensors")
    assert _difference(mine, reference.parts.unet.state_dict()) < WEIGHTS * reference.way()


def test_dreambooth_is_the_subject_s_mean_and_half_the_class_s(ours: Any) -> None:
    setting, recipe, _, losses = ours("dreambooth")
    reference = Reference("dreambooth", setting, recipe)
    # Even positions are the subject's, odd ones the class's.
    assert losses == pytest.approx(
        reference.train(lambda errors: errors[0::2].mean() + 0.5 * errors[1::2].mean()), rel=LOSS
    )
    assert recipe.batch_size == 2 * BATCH
