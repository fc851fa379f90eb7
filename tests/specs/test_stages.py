"""A recipe with stages is a chain of recipes: maps composed, teachers re-based, nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.known_maps import KNOWN_MAPS, find_map
from vega_diffusion.specs.presets import SDXL, SSD_1B, VEGA, preset
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.specs.stages import expand

RECIPE = Path(__file__).parents[2] / "recipes" / "vega-mini-distill-staged-cpu.toml"


def recipe(*changes: str) -> TrainRecipe:
    return TrainRecipe.read(RECIPE, changes)


def test_a_recipe_without_stages_is_itself():
    alone = recipe("stages=[]")
    assert expand(alone, "run") == [("run", alone)]


def test_every_stage_starts_where_the_one_before_ended():
    (first_name, first), (last_name, last) = expand(recipe(), "run")
    assert (first_name, last_name) == ("run.ssd", "run")
    assert (first.steps, last.steps) == (1_000, 1_400)
    assert (first.model.base, last.model.base) == ("ssd-mini", "vega-mini")
    assert first.model.surgery is not None
    assert last.model.surgery is not None
    assert (first.model.surgery.teacher, first.model.surgery.map) == ("mini-sdxl", "ssd-1b")
    assert (last.model.surgery.teacher, last.model.surgery.map) == ("run:run.ssd", "ssd-1b-to-vega")
    assert first.objective.teachers[0].map == "ssd-1b"  # type: ignore[union-attr]
    assert last.objective.teachers[0].map == "ssd-1b + ssd-1b-to-vega"  # type: ignore[union-attr]
    same = {"data", "optimizer", "lr_schedule", "ema", "batch_size", "micro_batch_size", "mixed_precision", "seed"}
    for field in same:
        assert getattr(first, field) == getattr(last, field) == getattr(recipe(), field)
    assert first.model.weights == last.model.weights
    assert not first.stages
    assert not last.stages


def test_a_stage_may_change_more_than_the_student():
    """A curriculum: the same student at a lower resolution first, with cached outputs."""
    chain = expand(TrainRecipe.read(RECIPE.with_name("vega-distill-sdxl-cached.toml")), "run")
    (first_name, first), (_, last) = chain
    assert first_name == "run.512"
    assert (first.data.resolution_px, last.data.resolution_px) == (512, 1024)  # type: ignore[union-attr]
    assert first.objective.fixed_samples == 8_388_608  # type: ignore[union-attr]
    assert last.objective.fixed_samples is None  # type: ignore[union-attr]
    assert first.objective.feature_level is None  # type: ignore[union-attr]
    assert last.objective.teachers[0].map == "vega + same"  # type: ignore[union-attr]
    assert find_map("vega + same", VEGA.unet, SDXL.unet).blocks == KNOWN_MAPS["vega"].blocks
    assert last.model.surgery is not None
    assert (last.model.surgery.teacher, last.model.surgery.map) == ("run:run.512", "same")
    with pytest.raises(InvalidValue, match="map: 'same' .* two shapes"):
        find_map("same", VEGA.unet, SDXL.unet)
    with pytest.raises(VegaError, match="data.resolution: 1"):
        bad = '[{ name = "a", base = "vega", map = "vega", steps = 440_000, changes = ["data.resolution=1"] }]'
        expand(TrainRecipe.read(RECIPE.with_name("vega-distill-sdxl-cached.toml"), [f"stages={bad}"]), "run")


def test_joined_maps_are_carved_one_after_the_other():
    joined = find_map("ssd-1b + ssd-1b-to-vega", VEGA.unet, SDXL.unet)
    assert joined.blocks == KNOWN_MAPS["vega"].blocks
    with pytest.raises(InvalidValue, match="map"):
        find_map("ssd-1b + nothing", VEGA.unet, SDXL.unet)
    assert preset("ssd-mini").unet.up_depths == SSD_1B.unet.up_depths


def test_rules_are_no_part_of_joined_maps_and_it_is_said_before_a_stage_is_trained():
    joined = r"map: 'even' .* in 'even \+ even', whose maps are joined: ssd-1b, .*, same, .* vega map show RULE"
    with pytest.raises(InvalidValue, match=joined) as error:
        expand(
            recipe('stages=[{ name = "a", base = "ssd-mini", map = "even", steps = 900 }]', "model.surgery.map=even"),
            "r",
        )
    assert "random" not in str(error.value)
    (_, first), (_, last) = expand(
        recipe('stages=[{ name = "a", base = "vega-mini", map = "even", steps = 900 }]', "model.surgery.map=same"), "r"
    )
    assert [one.objective.teachers[0].map for one in (first, last)] == ["even", "even + same"]  # type: ignore[union-attr]
    even = find_map("even", VEGA.unet, SDXL.unet)
    assert find_map("even + same", VEGA.unet, SDXL.unet).blocks == even.blocks


def teachers(*bounds: tuple[int, int | None]) -> str:
    entries = [
        f'{{ name = "{number}", base = "mini-sdxl", weights = "run:a", map = "vega", start_step = {start}'
        + (f", stop_step = {stop} }}" if stop else " }")
        for number, (start, stop) in enumerate(bounds)
    ]
    return f"objective.teachers=[{', '.join(entries)}]"


@pytest.mark.parametrize(
    ("bounds", "stages"),
    [  # of stages of 1,000 and 1,400 steps: (name, start, stop) of each
        ([(0, 1000), (1000, None)], [[("0", 0, None)], [("1", 0, None)]]),
        ([(0, 600), (600, None)], [[("0", 0, 600), ("1", 600, None)], [("1", 0, None)]]),
        ([(0, 1700), (1700, 2400)], [[("0", 0, None)], [("0", 0, 700), ("1", 700, None)]]),
        ([(0, None), (2000, 2100)], [[("0", 0, None)], [("0", 0, None), ("1", 1000, 1100)]]),
    ],
)
def test_steps_of_teachers_count_over_the_whole_chain(bounds, stages):
    chain = expand(recipe(teachers(*bounds)), "run")
    found: list[Any] = [
        [(one.name, one.start_step, one.stop_step) for one in stage.objective.teachers]  # type: ignore[union-attr]
        for _, stage in chain
    ]
    assert found == stages


TWICE = 'stages=[{ name = "a", base = "b", map = "c", steps = 2 }, { name = "a", base = "b", map = "c", steps = 2 }]'


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("model.surgery=none", "model.surgery: None .* the first teacher and the last map"),
        ('stages=[{ name = "a", base = "ssd-mini", map = "ssd-1b", steps = 0 }]', "stages.0.steps"),
        ('stages=[{ name = "a", base = "ssd-mini", map = "ssd-1b", steps = 9, lr = 1.0 }]', "only the known keys"),
        (TWICE, "stages: .* names that differ"),
        (teachers((0, 2000)), "nobody at step 2000"),
    ],
)
def test_chains_without_sense_are_refused(change, match):
    with pytest.raises(VegaError, match=match):
        recipe(change)
