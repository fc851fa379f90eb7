"""Predictions computed once: the same as asking live, found again, computed anew where what decides them changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tiny_distillation import recipe_text, teacher_text
from vega_diffusion.cli.main import main
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.objectives.build import build_objective
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.run import build_parts, fixed_order, frozen_components, with_outputs
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sources import build_source


@pytest.fixture
def recipe(stretched_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    teacher = stretched_folder
    file = tmp_path / "cached.toml"
    fixed = 'feature_weight = 0.0\nfeature_level = "none"\nfixed_samples = 8\n' + teacher_text("one", teacher, "even")
    sizes = {"micro_batch_size": 2, "save_every": 2, "num_scenes": 6, "captions_per_scene": 2}
    file.write_text(recipe_text(fixed, steps=5, surgery=(teacher, "even"), **sizes))
    return file


@pytest.fixture
def with_states(recipe: Path) -> Path:
    """The same recipe with features of modules."""
    text = recipe.read_text().replace('feature_weight = 0.0\nfeature_level = "none"\n', "feature_weight = 0.5\n")
    file = recipe.with_name("states.toml")
    file.write_text(text)
    return file


def caches(tmp_path: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "outputs").glob("*/rows.f16")}


@pytest.mark.parametrize("level", ["none", "block", "module", "transformer_block", "self_attention"])
def test_what_is_recalled_is_what_the_teacher_would_say(level: str, recipe: Path) -> None:
    weight = 0.0 if level == "none" else 0.5
    read = TrainRecipe.read(recipe, [f"objective.feature_level={level}", f"objective.feature_weight={weight}"])
    assert isinstance(read.objective, DistillationSpec)
    parts = build_parts(read)
    source: Any = build_source(read, parts.spec, torch.device("cpu"), frozen_components(read, parts.spec))
    recalled = with_outputs(read, read.objective, parts, source, torch.device("cpu"))
    assert [teacher.recall is None for teacher in (*parts.teachers, *recalled.teachers)] == [True, False]
    drawn = [5, 2, 7]
    rng = PositionRng(derive_seed(read.seed, "objective"), drawn, run_position=12)
    batch = source.load(drawn)
    live, cached = (
        build_objective(read.objective, parts.spec, parts.frozen, one.teachers, 4)(parts.student, batch, rng)
        for one in (parts, recalled)
    )
    torch.testing.assert_close(cached.per_sample, live.per_sample, rtol=1e-3, atol=1e-5)
    assert cached.parts["output"] > 0
    assert cached.parts.keys() == live.parts.keys()
    for name, value in live.parts.items():
        torch.testing.assert_close(cached.parts[name], value, rtol=1e-3, atol=1e-5)
    assert not torch.equal(cached.per_sample, live.per_sample)  # kept in fp16


@pytest.mark.slow
def test_a_run_over_fixed_samples_resumes_exactly_and_asks_once(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--run-name", "straight"]) == 0
    made = caches(tmp_path)
    assert len(made) == 1
    assert next(iter(made)).stat().st_size == 8 * 4 * 16 * 16 * 2
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "steps=2"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut"]) == 0
    assert "resuming cut after step 2" in capsys.readouterr().err
    first, second = (
        load_file(RunDirectory(name).ema / "unet/diffusion_pytorch_model.safetensors") for name in ("straight", "cut")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # Another learning rate, another student: nothing is computed again. Another seed or precision: all of it.
    assert main(["train", str(recipe), "--run-name", "faster", "--set", "optimizer.lr=1e-3", "--set", "steps=1"]) == 0
    assert (
        main(["train", str(recipe), "--run-name", "other", "--set", "model.surgery.map=first", "--set", "steps=1"]) == 0
    )
    assert caches(tmp_path) == made
    assert main(["train", str(recipe), "--run-name", "seed", "--set", "seed=1", "--set", "steps=1"]) == 0
    assert len(caches(tmp_path)) == 2


def test_more_samples_only_add_to_the_cache(recipe: Path, tmp_path: Path) -> None:
    assert main(["train", str(recipe), "--run-name", "few", "--set", "steps=2"]) == 0
    (path,) = caches(tmp_path)
    before = path.read_bytes()
    more = ["--run-name", "more", "--set", "objective.fixed_samples=12", "--set", "steps=3"]
    assert main(["train", str(recipe), *more]) == 0
    assert list(caches(tmp_path)) == [path]
    assert path.read_bytes()[: len(before)] == before
    assert len(path.read_bytes()) == len(before) * 12 // 8


def test_a_run_that_takes_each_sample_once_is_the_run_that_asks_live(with_states: Path, tmp_path: Path) -> None:
    live = with_states.with_name("live.toml")
    live.write_text(with_states.read_text().replace("fixed_samples = 8\n", ""))
    once = ["--set", "steps=2"]
    assert main(["train", str(live), "--run-name", "live", *once]) == 0
    assert not caches(tmp_path)
    assert main(["train", str(with_states), "--run-name", "recalled", *once]) == 0
    (made,) = caches(tmp_path)
    first, second = (
        [json.loads(line) for line in RunDirectory(name).metrics.read_text().splitlines()]
        for name in ("live", "recalled")
    )
    for one, other in zip(first, second, strict=True):
        for name in ("loss", "mse", "output", "feature"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), name
    assert any(one["feature"] != other["feature"] for one, other in zip(first, second, strict=True)), "kept in fp16"
    # Another map of the same modules asks nothing again; the weights of the loss are no part of it.
    again = ["--set", "model.surgery.map=first", "--set", "objective.feature_scale=plain"]
    again += ["--set", "objective.teachers.0.map=first"]
    size = made.stat().st_size
    assert main(["train", str(with_states), "--run-name", "first", *once, *again]) == 0
    assert [(path, path.stat().st_size) for path in caches(tmp_path)] == [(made, size)]


def test_a_teacher_of_some_steps_is_asked_about_their_samples_alone() -> None:
    first = {"name": "a", "base": "mini-sdxl", "map": "even", "stop_step": 2}
    last = {"name": "b", "base": "mini-sdxl", "map": "even", "start_step": 2}
    objective = DistillationSpec.from_dict({"fixed_samples": 20, "teachers": [first, last]})
    assert [objective.asked_about(one, steps=5, batch_size=4) for one in objective.teachers] == [
        range(8),
        range(8, 20),
    ]
    # Samples that come again come at other steps, so everybody is asked about all.
    assert {objective.asked_about(one, steps=6, batch_size=4) for one in objective.teachers} == {range(20)}


@pytest.mark.parametrize(
    ("bias", "said"),
    [
        (1e5, "the output of up_blocks.2.resnets.2 for sample 0 has numbers beyond what fp16 holds (up to 1e+05)"),
        (float("nan"), "its prediction for sample 0 has numbers that are not finite"),
    ],
)
def test_what_fp16_cannot_hold_is_refused(
    bias: float,
    said: str,
    with_states: Path,
    tmp_path: Path,
    stretched_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loud = tmp_path / "loud"
    shutil.copytree(stretched_folder, loud)
    file = next((loud / "unet").glob("*.safetensors"))
    weights = load_file(file)
    weights = {name: value.float() for name, value in weights.items()}
    weights["up_blocks.2.resnets.2.conv2.bias"] += bias
    save_file(weights, file)
    with_states.write_text(with_states.read_text().replace(str(stretched_folder), str(loud)))
    assert main(["train", str(with_states), "--run-name", "loud"]) == 2
    assert f"objective.teachers.one: {said}" in capsys.readouterr().err
    assert not any(path.stat().st_size for path in caches(tmp_path))


@pytest.fixture
def pictures(tmp_path: Path, recipe: Path) -> Path:
    """The same recipe on a folder of pictures of two shapes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        size = (128, 128) if number % 2 else (180, 90)
        Image.new("RGB", size, (30 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"wall number {number}")
    text = recipe.read_text()
    start, end = text.index("[data]"), text.index("[objective]")
    data = f'[data]\nkind = "image_latents"\nfolder = "{folder}"\nresolution_px = 128\nbucket_step_px = 32\n'
    file = tmp_path / "pictures.toml"
    file.write_text(text[:start] + data + text[end:])
    return file


def rows(tmp_path: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (tmp_path / "home/outputs").glob("*/keys.txt"))


def test_one_changed_picture_is_asked_about_alone(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    arguments = ["train", str(pictures), "--set", "data.empty_caption_rate=0.0", "--run-name"]
    assert main([*arguments, "first"]) == 0
    assert rows(tmp_path) == 8
    assert main([*arguments, "again", "--set", "optimizer.lr=1e-3"]) == 0
    (folder / "3.png").rename(folder / "33.png")
    (folder / "3.txt").rename(folder / "33.txt")
    assert main([*arguments, "renamed", "--set", "steps=1"]) == 0
    assert rows(tmp_path) == 8
    Image.new("RGB", (128, 128), (0, 200, 0)).save(folder / "5.png")
    assert main([*arguments, "painted"]) == 0
    read = TrainRecipe.read(pictures, ["data.empty_caption_rate=0.0"])
    parts = build_parts(read)
    source = build_source(read, parts.spec, torch.device("cpu"), frozen_components(read, parts.spec))
    drawn = [name for position in range(8) for name in source.load([position]).sample_ids]
    assert rows(tmp_path) == 8 + drawn.count("5.png")
    assert drawn.count("5.png") > 0
    assert (RunDirectory("painted").data).is_file()


def test_fixed_pictures_go_block_by_block(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = fixed_order(TrainRecipe.read(pictures))
    assert order is not None
    for epoch in range(3):
        seen = [order.index(8 * epoch + position) for position in range(8)]
        assert sorted(seen) == list(range(8))
        assert all(first % 2 == 0 and second == first + 1 for first, second in zip(seen[::2], seen[1::2], strict=True))
    assert main(["train", str(pictures), "--run-name", "odd", "--set", "objective.fixed_samples=7"]) == 2
    assert "objective.fixed_samples: 7 is not allowed; allowed: a multiple of" in capsys.readouterr().err
