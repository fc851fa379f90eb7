"""Tables and figure of the experiment say what its result files say, every seed of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vega_diffusion.benchmarks.distillation_step import CASES
from vega_diffusion.benchmarks.experiment_figure import draw_experiment
from vega_diffusion.benchmarks.experiment_report import (
    MATRIX,
    SEEDS,
    STEP_TITLES,
    STEPS,
    experiment_tables,
    steps_table,
)
from vega_diffusion.benchmarks.report import Measurement, Result, make_result
from vega_diffusion.specs.experiment import ExperimentSpec

SPEC = ExperimentSpec.read(Path(__file__).parents[2] / "benchmarks/experiments/distillation.toml")


def result(case: str, measurement: Measurement) -> Result:
    return make_result(case, f"python -m vega_diffusion.benchmarks {case}", measurement, threads=1, load_before=0.0)


@pytest.fixture
def results() -> list[Result]:
    losses = {one.name: 0.05 + 0.001 * number for number, one in enumerate(SPEC.configurations)}
    matrix = Measurement(
        samples={f"{name}_loss": [loss] for name, loss in losses.items()},
        summary={"steps": 235, "mini-sdxl_loss": 0.047, **{f"{name}_samples_per_s": 61.5 for name in losses}},
        protocol="made up",
    )
    scores = {"random": [0.2, 0.25, 0.3], "carved": [0.4, 0.45, 0.5], "module": [0.6, 0.65, 0.7]}
    differences = {"carved_less_random": 0.2, "carved_less_random_interval": "0.15 to 0.25"}
    differences |= {"module_less_carved": 0.201, "module_less_carved_interval": "-0.01 to 0.3"}
    seeds = Measurement(
        samples={f"{name}_overall": values for name, values in scores.items()},
        summary={"steps": 470, "mini-sdxl_overall": 0.745, **differences},
        seeds=(0, 1, 2),
        protocol="made up",
    )
    return [result(MATRIX, matrix), result(SEEDS, seeds)]


def test_tables_hold_every_figure(results: list[Result]) -> None:
    text = experiment_tables(SPEC, results)
    for line in (
        "| `random`: random weights, no teacher | 0.05000 | 61.5 |",
        "| mini-sdxl, a teacher | 0.04700 | |",
        "| `module`: predictions, features of modules | 60.0, 65.0, 70.0 | 65.0 |  |",
        "| `carved`: carved, no teacher | 40.0, 45.0, 50.0 | 45.0 | +20.0 (+15.0 to +25.0) |",
        "`module` less `carved`: +20.1 (-1.0 to +30.0).",
    ):
        assert line in text, line
    assert text.index("`module`: predictions, features of modules | 60") < text.index(
        "`random`: random weights, no teacher | 20"
    )
    assert experiment_tables(SPEC, []) == ""


def test_a_matrix_that_is_not_finished_says_what_is_missing(results: list[Result]) -> None:
    part = Measurement(
        name="so-far",
        samples={"random_loss": [0.14]},
        summary={"steps": 235, "missing": "carved, output"},
        protocol="made up",
    )
    text = experiment_tables(SPEC, [result(MATRIX, part)])
    assert "one seed. So far; not yet: carved, output." in text
    assert "| `random`: random weights, no teacher | 0.14000 |  |" in text
    assert "So far" not in experiment_tables(SPEC, results)


def test_what_a_teacher_costs_is_told_by_the_newest_result() -> None:
    said = {
        "batch": 64,
        "mixed_precision": "no",
        "task_samples_per_cpu_s": 71.1,
        "task_over_task": 1.0,
        "task_peak_gib": 1.01,
    }
    said |= {"features_samples_per_cpu_s": 31.5, "features_over_task": 2.25, "features_peak_gib": 1.14}
    text = steps_table([result(STEPS, Measurement(samples={}, summary=said, protocol="made up"))])
    assert "taught by mini-sdxl, float32, one thread of" in text
    assert "| no teacher | 71.1 | 1.0 | 1.01 |" in text
    assert "| predictions and features of modules | 31.5 | 2.25 | 1.14 |" in text
    assert steps_table([]) == ""
    assert STEP_TITLES.keys() == CASES.keys()


def test_the_figure_is_drawn_with_one_panel_and_with_two(results: list[Result], tmp_path: Path) -> None:
    sizes = []
    for some in (results[:1], results):
        draw_experiment(SPEC, some, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as picture:
            sizes.append(picture.size)
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
    assert sizes[1][0] == 2 * sizes[0][0]
