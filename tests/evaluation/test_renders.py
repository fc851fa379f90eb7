"""Rendered scenes show their prompts: a checker without a fault passes all of them, and none under other prompts."""

from __future__ import annotations

from tiny_evaluation import truth_of
from vega_diffusion.data.scenes.scene import STYLES
from vega_diffusion.evaluation.judgement import judge
from vega_diffusion.evaluation.renders import drawable_styles, scene_for
from vega_diffusion.evaluation.run_folder import JudgedPicture
from vega_diffusion.evaluation.scores import chance_rates, prompt_rates, scores_of
from vega_diffusion.evaluation.suites import read_suite
from vega_diffusion.specs.evaluation import SuitePrompt


def judged_renders(prompts: tuple[SuitePrompt, ...]) -> list[JudgedPicture]:
    judged = []
    for prompt in prompts:
        for seed in prompt.seeds:
            finding = truth_of(scene_for(prompt, seed))
            verdict = judge(prompt, finding)
            judged.append(
                JudgedPicture(
                    id=prompt.id, kind=prompt.kind, unseen=prompt.unseen, seed=seed, file="", passed=verdict.passed,
                    reasons=verdict.reasons, finding=finding,
                )
            )  # fmt: skip
    return judged


def test_every_render_shows_its_prompt_and_shuffled_prompts_fall_to_chance() -> None:
    suite = read_suite("scenes", "test")
    judged = judged_renders(suite.prompts)
    assert [one.reasons for one in judged if not one.passed] == []
    assert scores_of(prompt_rates(judged)).overall == 1.0
    chance = scores_of(chance_rates(suite.prompts, judged))
    assert chance.overall is not None
    assert chance.overall < 0.02, "objects are named wrongly almost always"
    # one in twelve colours, five places, six styles
    assert 0 < chance.rows["background"] < 0.25
    assert chance.rows["place"] < 0.45
    assert chance.rows["style"] < 0.45


def test_a_scene_is_a_function_of_prompt_and_seed_and_styles_take_turns() -> None:
    prompt = next(p for p in read_suite("scenes", "test").prompts if drawable_styles(p) == STYLES)
    assert scene_for(prompt, prompt.seeds[0]) == scene_for(prompt, prompt.seeds[0])
    assert len({scene_for(prompt, seed).style for seed in prompt.seeds}) == len(prompt.seeds)
