"""The steps that the two benchmarks of distillation time and weigh are real steps, small here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from tiny_distillation import recipe_text, teacher_text
from vega_diffusion.benchmarks import full_size_step
from vega_diffusion.benchmarks.distillation_step import CASES, make_step
from vega_diffusion.training import planner
from vega_diffusion.training.planner import plan_run

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("speed_measured_once")


@pytest.fixture(scope="module")
def recipe(stretched_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher = stretched_folder
    file = tmp_path_factory.mktemp("steps") / "tiny.toml"
    file.write_text(recipe_text(teacher_text("one", teacher, "even"), steps=1, surgery=(teacher, "even")))
    return file


@pytest.mark.parametrize(("name", "precision"), [*((name, "no") for name in CASES), ("features", "bf16")])
def test_every_case_takes_steps_that_move_the_student(
    recipe: Path, name: str, precision: Literal["no", "bf16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    make = torch.optim.AdamW.__init__

    def remember(self, *args, **kwargs):
        make(self, *args, **kwargs)
        built.append(self)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", remember)
    step = make_step(name, recipe, 2, precision)
    (optimizer,) = built
    weight = optimizer.param_groups[0]["params"][0]
    before = weight.detach().clone()
    step()
    assert not torch.equal(weight, before)


def test_the_full_size_step_at_mini_size(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full_size_step.main(str(recipe), "256")
    said = json.loads(capsys.readouterr().out)
    assert said["loss"] > 0
    assert said["before_bytes"] > 0


def test_the_full_size_step_is_that_of_the_full_size_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "LARGE", 10**12)  # which cards it would fit takes longer than all else of a plan
    small = full_size_step.small_step(ROOT / "recipes/vega-distill-sdxl.toml", 256)
    plan = plan_run(small, torch.device("cpu"))
    assert (plan.trained_parameters, plan.frozen_parameters) == (745_225_604, 2_567_463_684)
    assert 15 < plan.total_gib < 22
