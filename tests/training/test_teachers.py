"""Teachers from a recipe: found, checked against the student, loaded as they are; runs with them resume exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_distillation import recipe_text, teacher_text
from vega_diffusion.cli.main import main
from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.presets import VEGA_MINI
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.state import load_newest_state
from vega_diffusion.training.teachers import build_teachers

FILE = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    assert main(["map", "carve", "vega-mini", str(folder), "--map", "first", "--student", "mini-sdxl"]) == 0
    return folder


@pytest.fixture
def recipe(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    file = tmp_path / "distill.toml"
    first = teacher_text("first", teacher, "even", stop_step=3)
    second = teacher_text("second", "mini-sdxl", "even", weights=str(teacher), start_step=3, dtype="bf16")
    sizes = {"micro_batch_size": 2, "save_every": 2}
    file.write_text(recipe_text(f"{first}\n{second}", steps=6, surgery=(teacher, "even"), **sizes))
    return file


def spec_of(**teacher: Any) -> DistillationSpec:
    one = {"name": "one", "base": "mini-sdxl", "map": "even"} | teacher
    return DistillationSpec.from_dict({"kind": "distillation", "teachers": [one]})


def test_a_teacher_is_loaded_as_it_is_and_only_when_asked_for(teacher: Path) -> None:
    inputs: dict[str, str] = {}
    (found,) = build_teachers(spec_of(base=str(teacher), dtype="fp16"), VEGA_MINI, inputs)
    assert inputs.keys() == {"teachers.one", "teachers.one.map"}
    assert len(found.pairs) == 26
    unet, stored = found.load(), load_file(teacher / FILE)
    assert not unet.training
    assert all(torch.equal(value, stored[name]) for name, value in unet.state_dict().items())
    assert not [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    (planned,) = build_teachers(spec_of(dtype="bf16"), VEGA_MINI, None)
    parameter = next(planned.load().parameters())
    assert (parameter.device.type, parameter.dtype) == ("meta", torch.bfloat16)


@pytest.mark.parametrize(
    ("mixed_precision", "held"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_teacher_may_be_held_as_the_run_computes(mixed_precision: str, held: torch.dtype) -> None:
    (found,) = build_teachers(spec_of(dtype="run"), VEGA_MINI, None, mixed_precision)
    assert next(found.load().parameters()).dtype == held
    assert found.spec.dtype == {"no": "fp32"}.get(mixed_precision, mixed_precision)  # as caches of its answers say


@pytest.mark.slow
def test_a_run_with_a_succession_resumes_exactly_and_says_who_teaches(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--run-name", "straight"]) == 0
    straight = capsys.readouterr().err
    assert "step 3: teachers from here on: second" in straight
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "steps=4"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut"]) == 0
    assert "resuming cut after step 4" in capsys.readouterr().err
    states = [load_newest_state(RunDirectory(name).states, print) for name in ("straight", "cut")]
    assert states[0] is not None
    assert states[1] is not None
    for name, tensor in states[0].student.items():
        assert torch.equal(tensor, states[1].student[name]), name
    assert not [name for name in states[0].student if "teacher" in name]
    assert not [name for name in states[0].optimizer if "teacher" in name]
    lines = [json.loads(line) for line in RunDirectory("straight").metrics.read_text().splitlines()]
    shares = [[line.get(f"teacher/{name}") for name in ("first", "second")] for line in lines]
    assert shares == [[1.0, None]] * 3 + [[None, 1.0]] * 3
    assert len([name for name in lines[0] if name.startswith("feature/")]) == 26


def test_other_weights_of_a_teacher_end_a_resume(
    recipe: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    text = recipe.read_text().replace(str(teacher), str(other))
    recipe.write_text(text)
    assert main(["train", str(recipe), "--set", "steps=4"]) == 0
    tensors = load_file(other / FILE)
    tensors["conv_in.bias"] += 1
    save_file(tensors, other / FILE, metadata={"format": "pt"})
    assert main(["train", str(recipe)]) == 2
    assert "other weights than before" in capsys.readouterr().err


def test_a_teacher_that_is_not_finite_is_named_with_the_samples(
    recipe: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(teacher, broken)
    tensors = load_file(broken / FILE)
    tensors["conv_out.bias"][0] = float("nan")
    save_file(tensors, broken / FILE, metadata={"format": "pt"})
    recipe.write_text(recipe.read_text().replace(f'weights = "{teacher}"', f'weights = "{broken}"'))
    assert main(["train", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "step 3: loss (output) is not finite for samples scene 0/" in error
    state = load_newest_state(RunDirectory("distill").states, print)
    assert state is not None
    assert state.step == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"base": "mini-sdxl"}, "objective.teachers.one.weights: None .* name them"),
        ({"weights": "run:nobody"}, "run:nobody"),
        ({"map": "vegan"}, "objective.teachers.one: map: 'vegan'"),
        ({"base": "sdxl", "map": "vega"}, "objective.teachers.one: student.unet."),
        ({"base": "vega-mini", "map": "vega"}, "teacher's 41 blocks"),
    ],
)
def test_teachers_that_do_not_fit_are_one_line(changes, match, tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    with pytest.raises(VegaError, match=match):
        build_teachers(spec_of(**changes), VEGA_MINI, {})


def test_another_noise_schedule_is_refused_another_parameterisation_is_not(teacher: Path) -> None:
    schedule = VEGA_MINI.schedule
    noisier = VEGA_MINI.model_copy(update={"schedule": schedule.model_copy(update={"beta_end": 0.02})})
    with pytest.raises(InvalidValue, match=r"objective.teachers.one: schedule.beta_end: 0.012"):
        build_teachers(spec_of(base=str(teacher)), noisier, {})
    v = VEGA_MINI.model_copy(update={"schedule": schedule.model_copy(update={"prediction_type": "v_prediction"})})
    (found,) = build_teachers(spec_of(base=str(teacher)), v, {})
    assert found.prediction_type == "epsilon"


def test_weights_of_another_architecture_are_one_line() -> None:
    (found,) = build_teachers(spec_of(weights="vega-mini"), VEGA_MINI, {})
    with pytest.raises(VegaError, match="objective.teachers.one: .*name weights of mini-sdxl"):
        found.load()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises((MissingFile, InvalidValue), match="nowhere"):
        build_teachers(spec_of(weights=str(tmp_path / "nowhere")), VEGA_MINI, {})
    assert resolve_model("vega-mini").is_dir()
