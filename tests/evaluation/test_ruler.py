"""The ruler itself, on real renders: near 1 on true pictures, at chance on shuffled prompts, lower where it hurts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import HUES
from vega_diffusion.evaluation.degradations import DEGRADATIONS
from vega_diffusion.evaluation.renders import drawable_styles, sample_atlas, scene_for
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


SHAPES = {"single_object", "two_objects", "counting", "position"}


@pytest.mark.parametrize(
    ("name", "hurt", "least", "spared", "most"),
    [
        ("blur", {*SHAPES, "attribute_binding"}, 0.25, {"background"}, 0.15),
        ("noise", {*SHAPES, "attribute_binding"}, 0.25, set(), 0.0),
        # Not only what was recoloured is wrong then: a blue sun is hardly a sun any more, for people neither.
        ("turn_colours", {"colours", "attribute_binding", "background"}, 0.6, SHAPES, 0.3),
        ("mirror", {"position"}, 0.25, {"single_object", "two_objects", "counting", "colours", "background"}, 0.15),
    ],
)
def test_a_degradation_lowers_the_right_rows(
    judge: Judge,
    clean: tuple[Scores, Scores],
    name: str,
    hurt: set[str],
    least: float,
    spared: set[str],
    most: float,
) -> None:
    before = clean[0].kinds | clean[0].rows
    scores, _ = judge(DEGRADATIONS[name])
    after = scores.kinds | scores.rows
    falls = {kind: before[kind] - after[kind] for kind in before}
    assert {kind: fall for kind, fall in falls.items() if kind in hurt and fall < least} == {}
    assert {kind: fall for kind, fall in falls.items() if kind in spared and fall > most} == {}


def test_an_object_of_another_colour_fails_by_its_colour_alone(checker: SceneChecker, suite: Suite) -> None:
    renderer, hues = SceneRenderer(sample_atlas()), list(HUES)
    coloured = [prompt for prompt in suite.prompts if prompt.kind == "colours"]
    assert len(coloured) == 12
    right, wrong = [], []
    for prompt in coloured:
        (asked,) = prompt.objects
        other = hues[(hues.index(str(asked.colour)) + 3) % len(hues)]
        changed = prompt.model_copy(update={"objects": (asked.model_copy(update={"colour": other}),)})
        if drawable_styles(changed):  # not every drawing can take every colour
            for source, verdicts in ((prompt, right), (changed, wrong)):
                pictures = renderer.render([scene_for(source, seed) for seed in prompt.seeds])
                verdicts += judge_pictures(prompt, [to_picture(row) for row in pictures], checker)
    assert len(wrong) >= 12
    assert sum(one.passed for one in right) >= 0.85 * len(right)
    assert sum(one.passed for one in wrong) <= 0.1 * len(wrong)
    by_colour = [one for one in wrong if " is " in " ".join(one.reasons)]
    assert len(by_colour) >= 0.85 * len(wrong)


def test_degradations_keep_shape_and_range() -> None:
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    assert len(DEGRADATIONS) == 4
    for degrade in DEGRADATIONS.values():
        spoiled = degrade(pixels)
        assert spoiled.shape == pixels.shape
        assert spoiled.abs().max() <= 1 + 1e-6
        assert not torch.equal(spoiled, pixels)
