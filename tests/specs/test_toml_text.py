"""A recipe written as TOML is the same recipe when it is read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.specs.toml_text import to_toml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def test_there_are_recipes_to_try():
    assert len(RECIPES) >= 17


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_survive(path: Path, tmp_path: Path):
    recipe = TrainRecipe.read(path)
    (tmp_path / "again.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert TrainRecipe.read(tmp_path / "again.toml") == recipe


def test_what_toml_cannot_say_and_what_must_be_quoted(tmp_path: Path):
    recipe = TrainRecipe.from_dict(
        {
            "model": {"base": "vega-mini", "train": ["unet"], "lora": {}},
            "data": {"kind": "image_latents", "folder": 'a "b" \\ c\n\x7f ü', "caption": "x", "resolution_px": 128},
            "objective": {"kind": "denoising", "min_snr_gamma": None},
            "optimizer": {"lr": 1e-7, "lr_factors": {"unet.mid_block": 3.0}},
            "ema": None,
            "max_grad_norm": None,
            "tracker": None,
            "steps": 3,
            "batch_size": 2,
            "micro_batch_size": 1,
            "samples": {"prompts": ["a cat", 'a "dog"']},
            "sample_every": 1,
        }
    )
    text = to_toml(recipe)
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")
    again = TrainRecipe.read(tmp_path / "again.toml")
    assert again == recipe
    assert again.model.lora is not None
    assert again.ema is None
    assert 'ema = "none"' in text
    assert "sharding" not in text  # at its default, which reads "none"
