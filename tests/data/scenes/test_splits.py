"""Held-out combinations: one in ten, stable, and never in anything that training sees."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from vega_diffusion.data.scene_stream import scene_stream
from vega_diffusion.data.scenes.grammar import SceneMix, sample_scene
from vega_diffusion.data.scenes.scene import HUES, PLACES, PlacedObject, Scene
from vega_diffusion.data.scenes.splits import (
    held_out_combinations,
    held_out_list,
    held_out_part,
    in_split,
    scene_combinations,
)
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.specs.recipe import TrainRecipe

NAMES = load_vocabulary().names
BOX = (0, 0, 40, 40)
RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))


def test_one_combination_in_ten_is_held_out_of_each_pairing() -> None:
    found = [pairing for pairing, _, _ in held_out_list(NAMES)]
    pairs = len(NAMES) * (len(NAMES) - 1) / 2
    assert found.count("noun-noun") / pairs == pytest.approx(0.1, abs=0.01)
    assert found.count("noun-colour") / (len(NAMES) * len(HUES)) == pytest.approx(0.1, abs=0.025)
    assert found.count("noun-place") / (len(NAMES) * len(PLACES)) == pytest.approx(0.1, abs=0.03)


def test_half_is_for_tuning_and_half_for_the_final_test() -> None:
    parts = [held_out_part(*found) for found in held_out_list(NAMES)]
    assert parts.count("dev") / len(parts) == pytest.approx(0.5, abs=0.05)


def test_order_of_nouns_does_not_matter() -> None:
    for first, second in itertools.pairwise(NAMES):
        assert held_out_part("noun-noun", first, second) == held_out_part("noun-noun", second, first)


def test_the_split_is_frozen() -> None:
    """Models are published that were trained by it: another split would test on what they have seen."""
    known = {
        ("noun-place", "cat", "snow"): "test",
        ("noun-place", "cat", "beach"): None,
        ("noun-noun", "cat", "pizza"): None,
    }
    assert {found: held_out_part(*found) for found in known} == known  # type: ignore[arg-type]


def test_combinations_of_a_scene() -> None:
    scene = Scene((PlacedObject("dog", BOX, "red"), PlacedObject("cat", BOX)), "snow", "noto")
    assert scene_combinations(scene) == {
        ("noun-noun", "cat", "dog"),
        ("noun-colour", "dog", "red"),
        ("noun-place", "cat", "snow"),
        ("noun-place", "dog", "snow"),
    }
    assert held_out_combinations(scene) >= {("noun-place", "cat", "snow")}
    assert not in_split(scene, "train")
    assert in_split(scene, "held-out")
    assert in_split(scene, "all")
    assert scene_combinations(Scene((PlacedObject("dog", BOX),) * 3, "red", "noto", count=3)) == set()


@pytest.mark.parametrize("split", ["held-out", "dev", "test"])
def test_the_held_out_sampler_shows_only_what_training_never_shows(split: str) -> None:
    for position in range(300):
        scene = sample_scene(3, position, split=split)
        parts = {held_out_part(*found) for found in scene_combinations(scene)} - {None}
        assert parts if split == "held-out" else parts == {split}
        assert not in_split(scene, "train")


def assert_none_held_out(draws: int) -> None:
    streams = [scene_stream(recipe_mix) for recipe_mix in _mixes()]
    for number, stream in enumerate(streams):
        for position in range(draws // len(streams)):
            scene = stream(1000 + number, position)
            assert held_out_combinations(scene) == set(), scene


def _mixes() -> list:
    """The scene mix of the defaults and of every recipe that draws scenes."""
    from vega_diffusion.specs.data import SceneMixSpec

    found = [SceneMixSpec()]
    for path in RECIPES:
        data = TrainRecipe.read(path, []).data
        if mix := getattr(data, "mix", None):
            found.append(mix)
    return found


def test_20_000_scenes_of_all_sources_show_no_held_out_combination() -> None:
    assert_none_held_out(20_000)


@pytest.mark.slow
def test_200_000_scenes_of_all_sources_show_no_held_out_combination() -> None:
    assert_none_held_out(200_000)


def test_the_check_itself_finds_held_out_combinations() -> None:
    """Without the split, about one scene in ten that combines things would be found."""
    mix = SceneMix(kinds=(("two", 1.0),), place_rate=0.0)
    scenes = [sample_scene(5, position, split="all", mix=mix) for position in range(1000)]
    assert sum(bool(held_out_combinations(scene)) for scene in scenes) == pytest.approx(100, abs=40)
