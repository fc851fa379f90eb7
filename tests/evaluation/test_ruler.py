"""The ruler itself, on real renders: near 1 on true pictures, at chance on shuffled prompts, lower where it hurts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.evaluation.degradations import DEGRADATIONS
from vega_diffusion.evaluation.renders import sample_atlas, scene_for
from vega_diffusion.evaluation.scores import Scores, chance_rates, prompt_rates, scores_of
from vega_diffusion.evaluation.suites import Suite, read_suite
from vega_diffusion.evaluation.workers import judge_pictures, to_picture
from vega_diffusion.models.checker import SceneChecker, read_checker

Judge = Callable[[Callable[[Tensor], Tensor]], tuple[Scores, Scores]]


@pytest.fixture(scope="module")
def checker() -> SceneChecker:
    return read_checker()


@pytest.fixture(scope="module")
def suite() -> Suite:
    # The dev split: the test split is for models.
    return read_suite("scenes", "dev").limited(12)


@pytest.fixture(scope="module")
def judge(checker: SceneChecker, suite: Suite) -> Judge:
    """Scores of real renders after a change, and what shuffled prompts get."""
    renderer = SceneRenderer(sample_atlas())
    pixels = {
        prompt.id: renderer.render([scene_for(prompt, seed) for seed in prompt.seeds]) for prompt in suite.prompts
    }

    def scores(change: Callable[[Tensor], Tensor]) -> tuple[Scores, Scores]:
        judged = []
        for prompt in suite.prompts:
            pictures = [to_picture(row) for row in change(pixels[prompt.id])]
            judged += judge_pictures(prompt, pictures, checker)
        return scores_of(prompt_rates(judged)), scores_of(chance_rates(suite.prompts, judged))

    return scores


@pytest.fixture(scope="module")
def clean(judge: Judge) -> tuple[Scores, Scores]:
    return judge(lambda pixels: pixels)


def test_real_renders_pass_and_shuffled_prompts_fall_to_chance(clean: tuple[Scores, Scores]) -> None:
    scores, chance = clean
    assert scores.overall is not None
    assert chance.overall is not None
    assert scores.overall >= 0.9
    assert chance.overall <= 0.05


@pytest.mark.parametrize(
    ("name", "hurt", "spared"),
    [
        ("blur", {"single_object", "two_objects", "counting", "position", "attribute_binding"}, {"background"}),
        ("noise", {"single_object", "two_objects", "counting", "position", "attribute_binding"}, set()),
        ("turn_colours", {"colours", "attribute_binding", "background"}, {"counting"}),
        ("mirror", {"position"}, {"single_object", "two_objects", "counting", "colours", "background"}),
    ],
)
def test_a_degradation_lowers_the_right_rows(
    judge: Judge, clean: tuple[Scores, Scores], name: str, hurt: set[str], spared: set[str]
) -> None:
    before = clean[0].kinds | clean[0].rows
    scores, _ = judge(DEGRADATIONS[name])
    after = scores.kinds | scores.rows
    falls = {kind: before[kind] - after[kind] for kind in before}
    assert {kind: fall for kind, fall in falls.items() if kind in hurt and fall < 0.25} == {}
    assert {kind: fall for kind, fall in falls.items() if kind in spared and fall > 0.15} == {}


def test_degradations_keep_shape_and_range() -> None:
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    assert len(DEGRADATIONS) == 4
    for degrade in DEGRADATIONS.values():
        spoiled = degrade(pixels)
        assert spoiled.shape == pixels.shape
        assert spoiled.abs().max() <= 1 + 1e-6
        assert not torch.equal(spoiled, pixels)
