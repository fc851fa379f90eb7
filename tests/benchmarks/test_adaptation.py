"""The case `adaptation`: its prompts are new, all seeds count, and the recipes that it names are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vega_diffusion.benchmarks.adaptation import JOBS, SUBJECT, class_prompts, new_prompts
from vega_diffusion.benchmarks.adaptation_pictures import SEEDS, draw_and_judge, share_interval, write_sheet
from vega_diffusion.data.scenes.filters import FILTERS
from vega_diffusion.data.scenes.subjects import load_subjects
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe

ROOT = Path(__file__).parents[2]


def test_jobs_are_recipes_that_two_processes_can_share():
    assert [job.name for job in JOBS] == ["neon-lora", "neon-full", "sketch-full", "subject-lora", "subject-alone"]
    for job in JOBS:
        recipe = TrainRecipe.read(ROOT / job.recipe, job.changes)
        assert isinstance(recipe.data, ImageLatentsSpec)
        assert bool(recipe.data.prior) == job.prior
        assert recipe.batch_size % (2 * recipe.micro_batch_size) == 0
        assert (job.style in FILTERS) != job.subject
    assert SUBJECT in load_subjects()


def test_prompts_ask_for_what_was_learnt_and_cover_all_kinds():
    style, _, sketch, subject, _ = (new_prompts(job) for job in JOBS)
    assert len(style) == 60
    assert len({kind for _, kind in style}) == 6
    assert all(text.endswith(", neon style") for text, _ in style)
    assert [text.replace("sketch", "neon") for text, _ in sketch] == [text for text, _ in style]
    assert [text.replace("sks ", "") for text, _ in subject] == [text for text, _ in class_prompts()]
    assert all("a sks cat" in text for text, _ in subject)
    assert "a cat on an orange background" in [text for text, _ in class_prompts()]
    assert len(class_prompts()) == len({text for text, _ in class_prompts()}) == 23


def test_every_seed_of_every_prompt_is_drawn_and_judged():
    asked = []
    found, judged = draw_and_judge(
        "vega-mini", ["a red apple", "a cat"], lambda finding: asked.append(finding) or True, print
    )
    assert len(found) == len(judged) == len(asked) == 2 * len(SEEDS)
    assert [prompt for prompt, _, _ in judged] == ["a red apple"] * 2 + ["a cat"] * 2
    assert judged[0][1].tobytes() != judged[1][1].tobytes()


@pytest.mark.parametrize(("found", "interval"), [([True] * 8, "1.0 to 1.0"), ([False] * 8, "0.0 to 0.0")])
def test_intervals_are_of_prompts(found: list[bool], interval: str):
    assert share_interval(found) == interval
    low, high = map(float, share_interval([True, True, False, False] * 10).split(" to "))
    assert low < 0.5 < high
    assert high - low > 0.3  # twenty prompts, whose two pictures agree, and not forty pictures


def test_the_sheet_shows_the_seeds_in_turn_with_their_prompts(tmp_path: Path):
    colours = ("red", "blue")
    judged = [(f"prompt {at // 2}", Image.new("RGB", (128, 128), colours[at % 2]), at % 2 == 0) for at in range(120)]
    write_sheet(judged, tmp_path / "images" / "sheet.png")
    with Image.open(tmp_path / "images" / "sheet.png") as sheet:
        assert sheet.size == (8 * 140, 3 * 176)
        assert [sheet.getpixel((60 + 140 * column, 60)) for column in range(3)] == [
            (255, 0, 0),
            (0, 0, 255),
            (255, 0, 0),
        ]
