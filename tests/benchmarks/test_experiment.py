"""The experiment on distillation: its committed file is valid, and a tiny one runs to its results (slow)."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tiny_distillation import recipe_text, stretched_teacher, teacher_text
from vega_diffusion.benchmarks import distillation_matrix, distillation_seeds
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.experiment import ExperimentSpec
from vega_diffusion.training.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks/experiments/distillation.toml"


def test_every_configuration_of_the_committed_experiment_is_a_valid_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = ExperimentSpec.read(FILE)
    assert len(spec.configurations) == 13
    for phase, samples in (("matrix", 30_080), ("seeds", 60_160)):
        for one in spec.configurations:
            recipe = spec.recipe_of(one, phase, 2)  # type: ignore[arg-type]
            assert recipe.steps * recipe.batch_size == samples
            assert recipe.seed == 2
            data = spec.recipe_of(spec.configurations[0], phase, 2).data  # type: ignore[arg-type]
            assert recipe.data == data, one.name  # the same samples for all
            surgery, objective = recipe.model.surgery, recipe.objective
            assert (surgery is None) == (one.name == "random")
            if isinstance(objective, DistillationSpec):
                assert surgery is not None
                assert {teacher.map for teacher in objective.teachers} == {surgery.map}, one.name


def test_finalists_are_the_best_the_baseline_and_the_named_ones() -> None:
    spec = ExperimentSpec.read(FILE).model_copy(update={"best": 2, "always": ("segmind",)})
    losses = {one.name: float(number) for number, one in enumerate(reversed(spec.configurations))}
    assert spec.finalists(losses) == ("random", "segmind", "map-scores", "three-teachers")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline = "random"', 'baseline = "none"', "baseline: 'none'"),
        ('name = "carved"', 'name = "random"', "configurations.name: 'random'"),
        ('name = "carved"', 'name = "A b"', "configurations.name: 'A b'"),
        ('["carved", "module"]', '["carved", "x"]', "pairs: 'x'"),
    ],
)
def test_mistakes_are_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(FILE.read_text().replace(old, new, 1))
    with pytest.raises(VegaError, match=message):
        ExperimentSpec.read(file)


@pytest.mark.slow
def test_a_tiny_experiment_from_its_file_to_its_results(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    teacher = stretched_teacher(tmp_path / "teacher")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(recipe_text(teacher_text("one", teacher, "even"), steps=2, surgery=(teacher, "even")))
    file = tmp_path / "trial.toml"
    file.write_text(f"""
recipe = "{recipe}"
baseline = "random"
best = 1
pairs = [["random", "module"]]
held_out_samples = 4
[matrix]
steps = 1
seeds = [0]
[seeds]
steps = 2
seeds = [0, 1]
[[configurations]]
name = "random"
title = "nothing"
changes = ["model.surgery=none", 'objective={{ kind = "denoising" }}']
[[configurations]]
name = "module"
title = "features"
""")
    with pytest.raises(MissingFile, match="distillation-matrix: not finished"):
        distillation_seeds.measure(file)
    matrix = distillation_matrix.measure(file)
    assert matrix.samples.keys() == {"random_loss", "module_loss"}
    assert matrix.samples["module_loss"][0] < matrix.samples["random_loss"][0]
    assert matrix.summary["finalists"] == "random, module"
    # A record stands for a run that is gone; without one, a finished run is measured again and not trained.
    states = RunDirectory("trial-matrix-module-0").states
    trained = states.stat().st_mtime_ns
    shutil.rmtree(RunDirectory("trial-matrix-random-0").path)
    assert distillation_matrix.measure(file) == matrix
    assert not RunDirectory("trial-matrix-random-0").path.exists()
    assert distillation_matrix.measure(file, recorded=True) == matrix
    (file.with_suffix("") / "matrix-module-0.json").unlink()
    part = distillation_matrix.measure(file, recorded=True)
    assert (part.name, part.summary["missing"], part.samples.keys()) == ("so-far", "module", {"random_loss"})
    assert distillation_matrix.measure(file).samples == matrix.samples
    assert states.stat().st_mtime_ns == trained
    # Asking the teacher before changes nothing but the rounding of what it says.
    other = file.with_name("recalled.toml")
    other.write_text(file.read_text())
    recalled = distillation_matrix.measure(other, recall=True)
    assert recalled.samples["random_loss"] == matrix.samples["random_loss"]
    assert recalled.samples["module_loss"] == pytest.approx(matrix.samples["module_loss"], rel=1e-4)
    assert len(list((tmp_path / "home/outputs").glob("*/rows.f16"))) == 1
    seeds = distillation_seeds.measure(file, limit=1, at_once=2, changes=("log_every=1",))
    assert {name: len(values) for name, values in seeds.samples.items()} == {"random_overall": 2, "module_overall": 2}
    assert (seeds.name, seeds.summary["prompts_of_a_kind"]) == ("limit-1", 1), "a quick look has a file of its own"
    assert "module_less_random_interval" in seeds.summary
    shares = [value for key, value in seeds.summary.items() if key.startswith("module_style_")]
    assert sum(map(float, shares)) == pytest.approx(1.0, abs=1e-3)
    # A run that fails leaves the others be; a part is trained ahead of the whole.
    broken = file.with_name("broken.toml")
    changed = file.read_text().replace('title = "nothing"', 'title = "fails"')
    broken.write_text(changed.replace('changes = ["model.surgery=none"', 'changes = ["model.weights.vae=run:nobody"'))
    train = runpy.run_path(str(ROOT / "scripts/train_experiment.py"))["main"]
    assert train([str(broken), "--phase", "matrix", "--only", "nobody"]) == 2
    assert train([str(broken), "--phase", "matrix", "--only", "random", "module"]) == 2
    assert "error: 1 of 2 runs failed, the first: broken-matrix-random-0" in capfd.readouterr().err
    assert [one.stem for one in broken.with_suffix("").iterdir()] == ["matrix-module-0"]
    assert train([str(broken), "--phase", "matrix", "--only", "module"]) == 0
    # Scores stay as they are when all runs are gone.
    shutil.rmtree(tmp_path / "home/runs")
    assert distillation_seeds.measure(file, limit=1, changes=("log_every=1",)) == seeds
