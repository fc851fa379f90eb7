"""A tiny autoencoding run: real classes, 16 px pictures, seconds in all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import small_autoencoder
from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.autoencoding import Autoencoding
from vega_diffusion.specs.objective import AutoencodingSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import publish_components
from vega_diffusion.training.loop import Trainer, make_accelerator
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.student import Student


class SmoothPictures:
    """Blurred noise; sample `bad` is not a number."""

    def __init__(self, seed: int = 0, bad: int | None = None) -> None:
        self.seed, self.bad = seed, bad

    def load(self, positions: Sequence[int]) -> Batch:
        coarse = PositionRng(self.seed, positions).normal((3, 4, 4), "picture").clamp(-1, 1)
        pixels = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
        for row, position in enumerate(positions):
            if position == self.bad:
                pixels[row, 0, 0, 0] = float("nan")
        return Batch([f"picture {position}" for position in positions], {"pixels": pixels})

    def fingerprint(self) -> str:
        return f"smooth pictures {self.seed}"


def tiny_recipe(**changes: Any) -> TrainRecipe:
    """A recipe of 6 steps of 4 samples; `changes` are top-level tables or values."""
    data: dict[str, Any] = {
        "model": {"base": "vega-mini", "train": ["vae"]},
        "data": {"kind": "scene_images"},
        "objective": {"kind": "autoencoding"},
        "optimizer": {"lr": 1e-2},
        "lr_schedule": {"kind": "cosine", "warmup_steps": 2},
        "steps": 6,
        "batch_size": 4,
        "micro_batch_size": 2,
        "save_every": 3,
        "log_every": 2,
    }
    return TrainRecipe.from_dict(data | changes)


def tiny_student(recipe: TrainRecipe) -> Student:
    vae = small_autoencoder(seed=7, mid_block_add_attention=False)
    return Student({"vae": vae}, freeze=recipe.model.freeze, freeze_after=recipe.model.freeze_after)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Return a maker of trainers: (recipe, run name, other Trainer arguments) -> Trainer."""

    def make(recipe: TrainRecipe, name: str = "run", source: Any = None, **more: Any) -> Trainer:
        directory = RunDirectory(name, tmp_path)
        directory.create()
        objective = Autoencoding(AutoencodingSpec.model_validate(recipe.objective.model_dump()))
        more = {"publish": lambda student, step: publish_components(student, directory.ema, step)} | more
        return Trainer(
            recipe,
            tiny_student(recipe),
            objective,
            source or SmoothPictures(),
            directory,
            make_accelerator(recipe, "cpu"),
            **more,
        )

    return make


@pytest.fixture
def recipe() -> Callable[..., TrainRecipe]:
    """Return the maker of tiny recipes."""
    return tiny_recipe


@pytest.fixture
def pictures() -> type[SmoothPictures]:
    """Return the data source's class."""
    return SmoothPictures
