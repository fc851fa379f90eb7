"""Calibration questions are spread over the timesteps; the rule keeps the worst layers out within its bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_backends import smallest_unet
from tiny_questions import random_question
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.calibration import as_samples, record_questions
from vega_diffusion.inference.backends.protocol import Denoiser, Question
from vega_diffusion.inference.backends.quantise_rule import Group, QuantisationRule, kept_groups
from vega_diffusion.inference.backends.torch_eager import TorchEager


def draw(denoiser: Denoiser) -> None:
    """Ask as a guided run of 20 steps would, at both depths."""
    unet = smallest_unet()
    for step in range(20):
        question = random_question(unet, 2, 4, 4, seed=step)
        question = Question(**question.named() | {"timesteps": torch.full((2,), 999.0 - 50 * step)})
        prediction, deep = denoiser.full(question)
        assert torch.equal(denoiser.predict(question), prediction)
        assert torch.equal(denoiser.shallow(question, deep), prediction)


def test_questions_of_a_run_are_spread_over_the_timesteps_and_the_same_each_time() -> None:
    unet = smallest_unet()
    kept, again = (record_questions(draw, TorchEager(lambda: unet), 10) for _ in range(2))
    assert len(kept) == 10
    assert all(len(question.x_t) == 2 for question in kept), "guidance compares the rows of a question"
    times = [float(question.timesteps[0]) for question in kept]
    assert times == sorted(times, reverse=True)
    assert {int(t // 100) for t in times} == set(range(10))
    assert all(torch.equal(one.x_t, other.x_t) for one, other in zip(kept, again, strict=True))
    sample: Any = as_samples(kept)[0]
    assert sorted(sample) == ["pooled_prompt_embeds", "prompt_embeds", "time_ids", "timesteps", "x_t"]
    assert all(array.dtype == "float32" for array in sample.values())


GROUPS = st.lists(st.builds(Group, st.just(("layer",)), st.floats(0, 1), st.floats(0, 0.01)), max_size=12)


@given(groups=GROUPS, max_error=st.floats(0.01, 0.5), max_work=st.floats(0, 1))
def test_the_rule_keeps_within_its_bounds(groups: list[Group], max_error: float, max_work: float) -> None:
    rule = QuantisationRule(max_error=max_error, max_kept_work=max_work)
    kept = kept_groups(groups, rule)
    assert sum(group.work for group in kept) <= max_work + 1e-9
    rest = sum(group.error for group in groups) - sum(group.error for group in kept)
    if rest > max_error**2 + 1e-9:
        left = [group for group in groups if group not in kept]
        assert all(sum(group.work for group in kept) + group.work > max_work - 1e-9 for group in left)


def test_the_worst_for_their_work_leave_first() -> None:
    cheap, dear, good = (Group(("cheap",), 0.01, 4e-4), Group(("dear",), 0.5, 5e-4), Group(("good",), 0.49, 1e-5))
    assert kept_groups([good, dear, cheap], QuantisationRule(max_error=0.025)) == [cheap]
    assert kept_groups([good, dear, cheap], QuantisationRule(max_error=0.05)) == []
    assert kept_groups([good, dear, cheap], QuantisationRule(max_error=0.005, max_kept_work=1)) == [cheap, dear]


def test_a_rule_with_impossible_numbers_is_an_error() -> None:
    with pytest.raises(InvalidValue, match=r"quantisation.max_kept_work: 2 is not allowed; allowed: 0 to 1"):
        QuantisationRule(max_kept_work=2)
    with pytest.raises(InvalidValue, match="num_probes"):
        QuantisationRule(num_samples=2)
