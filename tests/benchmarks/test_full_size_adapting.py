"""The case `full-size-adapting`: its steps at mini size, and what it asks for at full size."""

from __future__ import annotations

import json

import pytest
import torch

from vega_diffusion.benchmarks import full_size_adapting
from vega_diffusion.benchmarks.full_size_adapting import adapting_recipe
from vega_diffusion.benchmarks.protocol import CommandRun, Timing
from vega_diffusion.training import optimizer as built
from vega_diffusion.training import planner
from vega_diffusion.training.planner import plan_run

pytestmark = pytest.mark.usefixtures("speed_measured_once")


@pytest.mark.parametrize(("job", "optimizer"), [("lora", "adamw"), ("full", "adafactor")])
def test_a_step_at_mini_size_moves_what_learns(
    job: str, optimizer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[bool] = []
    recipe = adapting_recipe(job, "vega-mini", 64, 4, optimizer)
    build = built.build_optimizer

    def remember(*given: object):
        made = build(*given)  # type: ignore[arg-type]
        learns, take = made.param_groups[0]["params"], made.step
        before = [one.detach().clone() for one in learns]

        def stepped() -> None:
            take()
            moved.append(any(not torch.equal(one, then) for one, then in zip(learns, before, strict=True)))

        monkeypatch.setattr(made, "step", stepped)
        return made

    monkeypatch.setattr(built, "build_optimizer", remember)
    full_size_adapting.main(job, recipe.to_json())
    said = json.loads(capsys.readouterr().out)
    assert moved == [True]
    assert said["loss"] > 0
    assert said["before_bytes"] > 0
    assert said["parameters"] == plan_run(recipe, torch.device("cpu")).trained_parameters


def test_full_size_is_vega_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "LARGE", 10**12)  # which cards it would fit takes longer than all else of a plan
    lora, full = (plan_run(adapting_recipe(job), torch.device("cpu")) for job in ("lora", "full"))
    assert (lora.trained_parameters, lora.frozen_parameters) == (4_567_040, 745_225_604)
    assert (full.trained_parameters, full.frozen_parameters) == (745_225_604, 0)
    assert 4 < lora.total_gib < 5
    assert 8 < full.total_gib < 9.5


def test_bars_say_how_far_a_peak_is_off_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {job: plan_run(adapting_recipe(job, "vega-mini", 64), torch.device("cpu")) for job in ("lora", "full")}
    off = {"lora": 1.1, "full": 0.7}

    def run(arguments: list[str]) -> CommandRun:
        said = {"before_bytes": 1000, "step_s": 2.0, "loss": 1.0}
        peak = 1000 + round(off[arguments[1]] * plans[arguments[1]].total_gib * 2**30)
        return CommandRun(Timing(1.0, 1.0), peak, f"a line\n{json.dumps(said)}\n")

    monkeypatch.setattr(full_size_adapting, "run_command", run)
    found = full_size_adapting.measure(resolution=64, base="vega-mini")
    assert [bar.measured for bar in found.bars] == pytest.approx([0.1, 0.3], abs=1e-3)
    assert [bar.met for bar in found.bars] == [True, False]
    assert found.summary["weights"] == "random"
