"""Every recipe in `recipes/`: parses, is named model-method-hardware, builds, runs small, shows nothing held out.

The default suite builds every recipe and runs one of each kind for two steps in fp32, which no machine is slow at; the
slow one runs every recipe in its own precision.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_models import TWO_STEPS
from vega_diffusion.cli.main import main
from vega_diffusion.data.scene_stream import scene_stream
from vega_diffusion.data.scenes.scene import STYLES
from vega_diffusion.data.scenes.splits import held_out_combinations
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.find import resolve_model
from vega_diffusion.objectives.build import build_objective
from vega_diffusion.specs.data import ImageLatentsSpec, SceneChecksSpec
from vega_diffusion.specs.presets import preset
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.specs.stages import expand
from vega_diffusion.training.components import model_spec
from vega_diffusion.training.planner import _meta_student, _meta_teachers

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.toml"), key=lambda path: path.stem)
NAMES = (
    "autoencoder-mini-cpu",
    "autoencoder-mini-decoder-cpu",
    "mini-sdxl-3d-cpu",
    "mini-sdxl-cartoon-cpu",
    "mini-sdxl-cuda",
    "mini-sdxl-denoise-cpu",
    "scene-checker-cpu",
    "text-mini-cpu",
    "tiny-autoencoder-mini-cpu",
    "vega-distill-sdxl",
    "vega-distill-sdxl-cached",
    "vega-mini-binding-cpu",
    "vega-mini-cuda",
    "vega-mini-denoise-cpu",
    "vega-mini-distill-cpu",
    "vega-mini-distill-staged-cpu",
    "vega-mini-distill-three-cpu",
    "vega-mini-joint-cpu",
    "vega-mini-several-cpu",
    "vega-mini-shapes-cpu",
    "vega-mini-style-full-cpu",
    "vega-mini-style-lora-cpu",
    "vega-mini-subject-lora-cpu",
)
# For a machine with a GPU, SDXL's weights and pictures of its own.
FULL_SIZE = ("vega-distill-sdxl", "vega-distill-sdxl-cached")
# One at least of each objective and each kind of data, and what vega-mini is published from.
QUICK = (
    "autoencoder-mini-cpu",
    "autoencoder-mini-decoder-cpu",
    "scene-checker-cpu",
    "text-mini-cpu",
    "tiny-autoencoder-mini-cpu",
    "vega-mini-denoise-cpu",
    "vega-mini-distill-cpu",
    "vega-mini-joint-cpu",
    "vega-mini-shapes-cpu",
    "vega-mini-subject-lora-cpu",
)
SMALL = (
    *TWO_STEPS,
    "compile=[]",
)


def shortened(path: Path, folder: Path) -> Path:
    """A recipe whose teachers come and go within two steps, and whose first stage takes two."""
    text = path.read_text().replace("1_200", "1").replace("1_800", "2").replace("\nsteps = 1_000", "\nsteps = 2")
    last = text.replace("start_step = 1\nstop_step = 2\n", "share = 0.1\nstart_step = 1\n").replace(
        "start_step = 2", "start_step = 1"
    )
    copy = folder / path.name
    copy.write_text(last)
    return copy


def needs(recipe: TrainRecipe) -> set[str]:
    surgery = recipe.model.surgery
    references = [*recipe.model.weights.values(), *([surgery.teacher] if surgery else [])]
    references += [teacher.weights or "" for teacher in getattr(recipe.objective, "teachers", ())]
    return {value.removeprefix("run:") for value in references if value.startswith("run:")}


def test_every_recipe_is_known_here():
    # A recipe that is not in the list would not be tested below.
    assert tuple(path.stem for path in RECIPES) == NAMES
    assert all(
        path.stem.rpartition("-")[2] in ("cpu", "cuda", "h200") for path in RECIPES if path.stem not in FULL_SIZE
    )


@pytest.mark.slow  # a plan of each size: `test_planner.py` has the first of these, and small ones
def test_full_size_recipes_say_what_they_would_take(capsys):
    work = {}
    for stem in FULL_SIZE:  # no weights, no pictures and no network are needed for that
        assert main(["train", str(FOLDER / f"{stem}.toml"), "--dry-run", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert plan["trained_parameters"] == 745_225_604
        assert plan["cards"]
        work[stem] = sum(
            one["gflop_per_sample"] * one["samples"] + one["gflop_per_output"] * one["fixed_samples"]
            for one in (plan, *plan.get("stages", {}).values())
        )
    # docs/distillation.md quotes this ratio.
    assert work["vega-distill-sdxl"] / work["vega-distill-sdxl-cached"] == pytest.approx(3.45, abs=0.01)


def test_recipes_name_only_runs_of_other_recipes():
    recipes = {path.stem: TrainRecipe.read(path) for path in RECIPES}
    assert set().union(*(needs(recipe) for recipe in recipes.values())) <= recipes.keys()


def test_every_recipe_builds():
    """Student, frozen components, teachers and objective of every stage fit together, on the meta device."""
    built = []
    for path in RECIPES:
        for name, recipe in expand(TrainRecipe.read(path), path.stem):
            spec = model_spec(recipe)
            with torch.device("meta"):
                student, frozen, before = _meta_student(recipe, spec)
                teachers = _meta_teachers(recipe, spec)
                build_objective(recipe.objective, spec, frozen, teachers, recipe.batch_size, before)
            assert set(recipe.model.train) <= set(student.component_names)
            assert any(parameter.requires_grad for parameter in student.parameters())
            assert len(teachers) == len(getattr(recipe.objective, "teachers", ()))
            built.append(name)
    stages = sum(len(TrainRecipe.read(path).stages) for path in RECIPES)
    assert stages == 2
    assert len(built) == len(NAMES) + stages


@pytest.mark.usefixtures("speed_measured_once")
def test_a_plan_of_stages_tells_each(capsys):
    assert main(["train", str(FOLDER / "vega-mini-distill-staged-cpu.toml"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    (stage,) = plan["stages"].values()
    assert stage["samples"] == 1_000 * 128
    assert plan["samples"] == 1_400 * 128
    assert stage["trained_parameters"] > plan["trained_parameters"]  # the student on the way is larger


@pytest.mark.slow
def test_recipes_of_every_kind_run_two_steps_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    every, quick = ({path.stem: TrainRecipe.read(path) for path in RECIPES if path.stem in of} for of in (NAMES, QUICK))
    for kinds in (lambda one: one.objective.kind, lambda one: one.data.kind):
        assert {kinds(recipe) for recipe in quick.values()} == {kinds(recipe) for recipe in every.values()}
    run_two_steps(QUICK, tmp_path, capsys, "mixed_precision=no", "samples.num_steps=2")
    check_latents_stay(tmp_path / "runs", capsys)
    check_publishing(tmp_path / "model", tmp_path / "again")
    capsys.readouterr()
    check_denoising_loss(tmp_path / "model", capsys)


@pytest.mark.slow
def test_every_recipe_runs_two_steps_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    run_two_steps([stem for stem in NAMES if stem not in FULL_SIZE], tmp_path, capsys)
    check_publishing_of_the_teacher(tmp_path / "teacher")


def run_two_steps(stems: Sequence[str], home: Path, capsys: pytest.CaptureFixture[str], *more: str) -> None:
    """Train recipes for two steps, each after those whose weights it starts from."""
    waiting, done = {path.stem: path for path in RECIPES if path.stem in stems}, []
    while waiting:
        stem = next(name for name, path in waiting.items() if needs(TrainRecipe.read(path)) <= set(done))
        path = waiting.pop(stem)
        recipe = TrainRecipe.read(path)
        kind = recipe.objective.kind
        changes = [*SMALL, *more, *(["data.num_scenes=6"] if recipe.data.kind == "scene_latents" else [])]
        if kind == "scene_checking":  # the sample of sprites lacks the held-out style
            changes.append(f"data.mix.styles={list(STYLES)}")
        shown = stem in ("autoencoder-mini-cpu", "vega-mini-denoise-cpu")  # the teacher's pictures take longest
        changes += ["sample_every=2", "samples.budget=1000.0"] if shown else ["sample_every=none"]
        changes += own_pictures(recipe, home / "pictures")
        arguments = [part for change in changes for part in ("--set", change)]
        short = shortened(path, home)
        assert main(["train", str(short), *arguments]) == 0, capsys.readouterr().err
        assert "2 steps done" in capsys.readouterr().out
        assert list((home / "runs" / stem / "ema").rglob("*.safetensors"))
        assert (home / "runs" / stem / "samples/step-00000002.png").is_file() == shown
        done.append(stem)
    assert sorted(done) == sorted(stems)


def own_pictures(recipe: TrainRecipe, folder: Path) -> list[str]:
    """Changes that give a recipe with pictures of its own a few."""
    if not isinstance(recipe.data, ImageLatentsSpec):
        return []
    assert main(["data", "scenes", "--count", "3", "--output", str(folder)]) == 0
    turns = 1 + len(recipe.data.prior)
    assert turns > 1
    given = []
    for number, prior in enumerate(recipe.data.prior):
        at = f"data.prior.{number}" if turns > 2 else "data.prior"
        given.append(f"{at}.folder={folder}" if prior.folder else f"{at}.num_pictures=1")
    return [f"data.folder={folder}", *given, f"micro_batch_size={turns}", f"batch_size={turns}"]


def check_latents_stay(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The decoder's recipe moves the decoder alone: encoder and scaling factor stay, bit for bit."""
    first, second = (runs / name / "ema/vae" for name in ("autoencoder-mini-cpu", "autoencoder-mini-decoder-cpu"))
    before, after = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (first, second))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all(key.startswith(("decoder.", "post_quant_conv.")) for key in moved)
    scales = [json.loads((folder / "config.json").read_text())["scaling_factor"] for folder in (first, second)]
    assert scales[0] == scales[1] != 1.0
    recipe = str(FOLDER / "autoencoder-mini-decoder-cpu.toml")
    for more, said in (
        (["--init-from", "vega-mini"], "--init-from"),
        (["--set", "model.weights={}"], "model.weights.vae"),
    ):
        assert main(["train", recipe, "--run-name", "refused", *more]) == 2
        assert said in capsys.readouterr().err


def check_publishing(model: Path, again: Path) -> None:
    """Publish what the recipes left, then again with two components of that folder: weights and provenance stay."""
    publish = publisher()
    text, unet = "run:vega-mini-joint-cpu", "run:vega-mini-denoise-cpu"
    assert publish(["vega-mini", str(model), "--unet", unet, "--text", text, "--vae", "run:autoencoder-mini-cpu"]) == 0
    assert publish(["vega-mini", str(again), "--unet", unet, "--text", str(model), "--vae", str(model)]) == 0
    for folder in (model, again):
        assert load_spec(folder).unet == preset("vega-mini").unet
        components = json.loads((folder / "vega.json").read_text())["provenance"]["components"]
        before = components["unet"]["started_from"]
        assert [components["unet"]["run"], before["run"]] == ["vega-mini-denoise-cpu", "vega-mini-joint-cpu"]
        assert before["started_from"]["run"] == "vega-mini-shapes-cpu"
        assert components["text_encoder"]["started_from"]["run"] == "text-mini-cpu"
        assert (components["vae"]["steps"], components["vae"]["samples"]) == (2, 4)
    files = [path.relative_to(model) for path in model.rglob("*.safetensors")]
    assert len(files) == 4
    assert all((model / path).read_bytes() == (again / path).read_bytes() for path in files)
    distilled = ["vega-mini", str(again), "--unet", "run:vega-mini-distill-cpu", "--text", text, "--vae", str(model)]
    assert publish(distilled) == 0
    record = json.loads((again / "vega.json").read_text())["provenance"]["components"]["unet"]
    committed = json.loads((resolve_model("mini-sdxl") / "vega.json").read_text())["provenance"]["components"]["unet"]
    assert record["run"] == "vega-mini-distill-cpu"
    assert record["started_from"] == committed
    assert publish(["vega-mini", str(again), "--unet", unet, "--text", "run:none", "--vae", str(model)]) == 2


def check_publishing_of_the_teacher(folder: Path) -> None:
    """A teacher's record says from which student it grew."""
    text, vae = "run:vega-mini-joint-cpu", "run:autoencoder-mini-cpu"
    teacher = ["mini-sdxl", str(folder), "--unet", "run:mini-sdxl-denoise-cpu", "--text", text, "--vae", vae]
    assert publisher()(teacher) == 0
    record = json.loads((folder / "vega.json").read_text())["provenance"]["components"]["unet"]
    assert (record["run"], record["started_from"]["run"]) == ("mini-sdxl-denoise-cpu", "vega-mini-several-cpu")


def publisher() -> Callable[[list[str]], int]:
    return runpy.run_path(str(FOLDER.parent / "scripts" / "publish_model.py"))["main"]


def held_out_scenes(count: int) -> list[str]:
    found, seen = [], set()
    for path in RECIPES:
        data = TrainRecipe.read(path).data
        if isinstance(data, (SceneChecksSpec, ImageLatentsSpec)):
            continue  # a judge must know what generators have never seen; pictures of a folder are no scenes
        stream, key = scene_stream(data.mix), (data.seed, data.mix.to_json())
        if key in seen:
            continue
        seen.add(key)
        found += [f"{path.stem} {p}" for p in range(count) if held_out_combinations(stream(data.seed, p))]
    assert len(seen) >= 3
    return found


def test_no_recipe_shows_held_out_combinations():
    assert held_out_scenes(2_000) == []


@pytest.mark.slow
def test_no_recipe_shows_held_out_combinations_in_200000_captions():
    assert held_out_scenes(200_000) == []


def check_denoising_loss(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A published U-Net has its run's loss, up to fp16; another run's has another."""
    measure = runpy.run_path(str(FOLDER.parent / "scripts" / "denoising_loss.py"))["main"]
    unets = ["run:vega-mini-denoise-cpu", str(model), "run:vega-mini-shapes-cpu"]
    small = ["--num-samples", "4", "--set", "micro_batch_size=2", "--set", "data.num_scenes=6"]
    assert measure([str(FOLDER / "vega-mini-denoise-cpu.toml"), *unets, *small]) == 0
    run, published, earlier = json.loads(capsys.readouterr().out)["loss"].values()
    assert run == pytest.approx(published, rel=1e-3)
    assert run != pytest.approx(earlier, rel=1e-4)
