"""Keys and values of the text are computed once a run, and nothing else changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vega_diffusion.benchmarks.contestants import random_question
from vega_diffusion.inference.backends.protocol import KeepsText, Question
from vega_diffusion.inference.backends.text_maps import text_maps_kept
from vega_diffusion.inference.backends.torch_eager import TorchEager
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import preset

SPEC = preset("vega-mini")
STEPS = 3


class Counted(nn.Module):
    """A map that counts how often it is computed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.count = inner, 0

    def forward(self, asked: Tensor) -> Tensor:
        self.count += 1
        return self.inner(asked)


@pytest.fixture
def counted() -> tuple[Any, list[Counted]]:
    """A U-Net, and its text attentions' keys and values."""
    torch.manual_seed(0)
    unet, maps = build_unet(SPEC.unet).eval(), []
    for path, module in list(unet.named_modules()):
        if path.endswith("attn2"):
            for name in ("to_k", "to_v"):
                setattr(module, name, Counted(getattr(module, name)))
                maps.append(getattr(module, name))
    return unet, maps


def questions(rows: int) -> list[Question]:
    """Return the questions of a run: one prompt, other latents and timesteps at every step."""
    asked = random_question(SPEC, 8, rows)
    return [
        Question(asked.x_t * (1 + step), asked.timesteps - 10 * step, *list(asked.named().values())[2:])
        for step in range(STEPS)
    ]


def test_a_run_computes_them_once_and_answers_the_same_bits(counted: tuple[Any, list[Counted]]):
    unet, maps = counted
    denoiser = TorchEager(lambda: unet)
    assert isinstance(denoiser, KeepsText)
    before = [denoiser.predict(question) for question in questions(2)]
    assert {one.count for one in maps} == {STEPS}
    with denoiser.text_kept():
        for question, expected in zip(questions(2), before, strict=True):
            # Equal prompts in another tensor: nothing is taken from what only looks alike.
            other = Question(**question.named() | {"prompt_embeds": question.prompt_embeds.clone()})
            assert torch.equal(denoiser.predict(other), expected)
    assert {one.count for one in maps} == {2 * STEPS}
    with denoiser.text_kept():
        for question, expected in zip(questions(2), before, strict=True):
            assert torch.equal(denoiser.predict(question), expected)
            full, deep = denoiser.full(question)
            assert torch.equal(full, expected)
            assert torch.equal(denoiser.shallow(question, deep), expected)
    assert {one.count for one in maps} == {2 * STEPS + 1}
    assert not any("forward" in one.__dict__ for one in maps)


def test_what_guidance_adds_or_takes_away_is_computed_anew(counted: tuple[Any, list[Counted]]):
    unet, maps = counted
    denoiser = TorchEager(lambda: unet)
    both, alone = questions(2)[0], questions(1)[0]
    expected = denoiser.predict(both), denoiser.predict(alone)
    for one in maps:
        one.count = 0
    with denoiser.text_kept():
        answers = [denoiser.predict(question) for question in (both, both, alone, alone)]
    assert all(torch.equal(answer, expected[number // 2]) for number, answer in enumerate(answers))
    assert {one.count for one in maps} == {2}


def test_a_run_ends_with_an_error_and_leaves_a_hook_of_others_in_place(counted: tuple[Any, list[Counted]]):
    unet, maps = counted
    hooked = maps[0].forward
    maps[0].forward = hooked  # as accelerate leaves its hooks
    with pytest.raises(ZeroDivisionError), text_maps_kept(unet):
        assert "forward" in maps[1].__dict__
        raise ZeroDivisionError
    assert maps[0].__dict__["forward"] is hooked
    assert not any("forward" in one.__dict__ for one in maps[1:])


def test_threads_draw_with_one_unet_each_in_its_own_run(counted: tuple[Any, list[Counted]]):
    unet, maps = counted
    denoiser, together = TorchEager(lambda: unet), Barrier(2)
    prompts = [random_question(SPEC, 8, 2), random_question(SPEC, 8, 2).mapped(lambda tensor: tensor * 0.5)]
    expected = [denoiser.predict(question) for question in prompts]

    def draw(number: int) -> list[Tensor]:
        answers = []
        with denoiser.text_kept():
            for _ in range(STEPS):
                together.wait(timeout=60)
                answers.append(denoiser.predict(prompts[number]))
        return answers

    with ThreadPoolExecutor(2) as pool:
        for answers, right in zip(pool.map(draw, range(2)), expected, strict=True):
            assert all(torch.equal(answer, right) for answer in answers)
    assert {one.count for one in maps} == {4}
    assert not any("forward" in one.__dict__ for one in maps)
