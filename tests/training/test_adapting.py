"""Training on one's own pictures: previews, held-out loss, class pictures, trackers, the report before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vega_diffusion.cli.main import main
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.engine import Engine
from vega_diffusion.models.checkpoint import load_tokenizer
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.specs.request import GenerateRequest
from vega_diffusion.training.class_pictures import fill_class_pictures
from vega_diffusion.training.components import locate, read_component
from vega_diffusion.training.data_report import report_data
from vega_diffusion.training.metrics import read_metrics
from vega_diffusion.training.previews import previews
from vega_diffusion.training.run import build_parts, frozen_components
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sample_budget import look_macs, sample_interval
from vega_diffusion.training.sources import build_source
from vega_diffusion.training.trackers import TensorBoard, open_tracker

RECIPE = """
steps = 4
batch_size = 4
micro_batch_size = 4
save_every = 2
log_every = 1
sample_every = 2
[model]
base = "vega-mini"
train = ["unet"]
weights = { vae = "vega-mini", text_encoder = "vega-mini", text_encoder_2 = "vega-mini", unet = "vega-mini" }
[model.lora]
rank = 2
[samples]
prompts = ["a photo of a cat"]
num_images = 2
num_steps = 2
budget = 1000.0
num_held_out = 1
[data]
kind = "image_latents"
folder = "FOLDER"
caption = "a photo of sks cat"
resolution_px = 64
bucket_step_px = 32
max_aspect = 1.0
flip_rate = 0.5
variants = 2
[data.prior]
caption = "a cat"
num_pictures = 2
[objective]
kind = "denoising"
[optimizer]
lr = 1e-3
"""

pytestmark = pytest.mark.usefixtures("speed_measured_once")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        levels = np.random.default_rng(number).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "stray.png").write_bytes(b"nothing")
    file = tmp_path / "subject.toml"
    file.write_text(RECIPE.replace("FOLDER", str(folder)))
    return file


def test_a_subject_and_its_class_are_trained_watched_and_resumed(recipe: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in (tmp_path / "pictures").rglob("*") if path.is_file()}
    assert main(["train", str(recipe), "--run-name", "straight"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "steps=2"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut"]) == 0
    runs = [RunDirectory(name) for name in ("straight", "cut")]
    file = "ema/pytorch_lora_weights.safetensors"
    assert (runs[0].path / file).read_bytes() == (runs[1].path / file).read_bytes()
    for run in runs:
        assert sorted(path.name for path in run.samples.iterdir()) == ["step-00000002.png", "step-00000004.png"]
    assert Image.open(runs[0].samples / "step-00000004.png").size == (128, 64)
    losses = [line["held_out_loss"] for line in read_metrics(runs[0].metrics) if "held_out_loss" in line]
    assert losses == [line["held_out_loss"] for line in read_metrics(runs[1].metrics) if "held_out_loss" in line]
    assert len(losses) == 2
    (classes,) = (tmp_path / "home/class_pictures").iterdir()
    assert sorted(path.name for path in classes.glob("*.png")) == ["class-00000000.png", "class-00000001.png"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "pictures").rglob("*") if path.is_file()}


def test_a_word_is_learnt_and_nothing_else_of_the_text_encoders(recipe: Path, capsys: pytest.CaptureFixture[str]):
    both = 'model.train=["unet", "text_encoder", "text_encoder_2"]'
    changes = [both, "model.lora=none", 'model.words=["sks"]', "data.prior=none", "sample_every=none"]
    options = [part for change in changes for part in ("--set", change)]
    assert main(["train", str(recipe), "--run-name", "warm", *options, "--init-from", "vega-mini"]) == 2
    assert "nothing with model.words" in capsys.readouterr().err
    guarded = ["--set", "model.lora=none", "--set", "data.prior.target=model", "--init-from", "vega-mini"]
    assert main(["train", str(recipe), "--run-name", "warm", *guarded]) == 2
    assert 'nothing with data.prior.target = "model"' in capsys.readouterr().err
    assert main(["train", str(recipe), "--run-name", "straight", *options]) == 0
    assert main(["train", str(recipe), "--run-name", "cut", *options, "--set", "steps=2"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut", *options]) == 0
    folder = resolve_model("vega-mini")
    tokenizers = load_tokenizer(folder, "tokenizer"), load_tokenizer(folder, "tokenizer_2")
    for name, tokenizer in zip(("text_encoder", "text_encoder_2"), tokenizers, strict=True):
        own, again = (load_file(RunDirectory(run).ema / name / "model.safetensors") for run in ("straight", "cut"))
        assert all(torch.equal(own[key], again[key]) for key in own)
        first = read_component(name, locate("vega-mini", name))
        learnt = read_component(name, RunDirectory("straight").ema / name / "model.safetensors")
        (key,) = [key for key in first if not torch.equal(first[key], learnt[key])]
        (row,) = (first[key] != learnt[key]).any(1).nonzero().flatten().tolist()
        assert row == tokenizer("sks").input_ids[1]


def test_class_pictures_are_what_the_model_draws_and_only_missing_ones_are_drawn(recipe: Path, tmp_path: Path):
    read = TrainRecipe.read(recipe, [f"data.prior.folder={tmp_path / 'class'}"])
    (prior,) = cast(Any, read.data).prior
    (tmp_path / "class").mkdir()
    own = tmp_path / "class" / "mine.jpg"
    Image.new("RGB", (64, 64), "red").save(own)
    kept = own.read_bytes()
    folder = fill_class_pictures(read, prior, 64, torch.device("cpu"))
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "class-00000000.png", "mine.jpg"]
    assert own.read_bytes() == kept
    wanted = Engine.load("vega-mini").generate(GenerateRequest(prompt="a cat", seed=0, width=64, height=64))[0].image
    drawn = np.asarray(Image.open(folder / "class-00000000.png")).astype(int)
    assert abs(drawn - np.asarray(wanted).astype(int)).max() <= 2  # fp16 weights in a folder, fp32 ones in the run
    before = (folder / "class-00000000.png").stat().st_mtime_ns
    fill_class_pictures(read, prior, 64, torch.device("cpu"))
    assert (folder / "class-00000000.png").stat().st_mtime_ns == before


def test_a_class_folder_that_cannot_be_written_is_named(recipe: Path, tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    read = TrainRecipe.read(recipe, [f"data.prior.folder={blocked / 'class'}"])
    with pytest.raises(VegaError, match=r"data.prior.folder: .* cannot be written .* name another folder"):
        fill_class_pictures(read, read.data.prior[0], 64, torch.device("cpu"))  # type: ignore[union-attr, arg-type]


def test_a_preview_is_the_picture_that_generate_draws(recipe: Path, tmp_path: Path):
    changes = ["samples.prompts=['a red apple']", "samples.num_images=1", "samples.seed=7", "samples.num_held_out=0"]
    read = TrainRecipe.read(recipe, [*changes, "samples.num_steps=none", "data.prior=none"])
    spec = load_spec(resolve_model("vega-mini"))
    directory = RunDirectory("run", tmp_path)
    directory.create()
    source = build_source(read, spec, torch.device("cpu"), frozen_components(read, spec))
    student = build_parts(read).student.eval()
    previews(read, spec, directory, source)(3, student)
    seen = np.asarray(Image.open(directory.samples / "step-00000003.png")).astype(int)
    request = GenerateRequest(prompt="a red apple", seed=7, width=64, height=64)
    drawn = np.asarray(Engine.load("vega-mini").generate(request)[0].image).astype(int)
    assert seen.shape == drawn.shape
    assert abs(seen - drawn).max() <= 3  # adapters of zeros, another order of additions


def test_previews_keep_their_share_of_the_work(recipe: Path):
    spec = load_spec(resolve_model("vega-mini"))
    free = TrainRecipe.read(recipe)
    assert sample_interval(free, spec) == 2
    held = TrainRecipe.read(recipe, ["samples.budget=0.03"])
    interval = sample_interval(held, spec)
    assert interval is not None
    assert interval == 80
    forwards = look_macs(held, spec) / look_macs(
        TrainRecipe.read(recipe, ["samples.num_images=1", "samples.num_held_out=0"]), spec
    )
    assert 2 < forwards < 4
    larger = TrainRecipe.read(recipe, ["samples.budget=0.03", "batch_size=400"])
    assert sample_interval(larger, spec) < interval  # type: ignore[operator]
    assert sample_interval(TrainRecipe.read(recipe, ["sample_every=none"]), spec) is None


def test_a_run_says_when_it_looks_less_often(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(recipe), "--set", "samples.budget=0.03", "--set", "data.prior=none"]) == 0
    assert "sample_every: 2 became" in capsys.readouterr().err
    assert list(RunDirectory("subject").samples.iterdir()) == []


def test_trackers_get_numbers_and_pictures(recipe: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", str(recipe), "--set", "data.prior=none"]) == 0
    events = EventAccumulator(str(RunDirectory("subject").tensorboard)).Reload()
    assert {"loss", "lr", "held_out_loss"} <= set(events.Tags()["scalars"])
    assert [image.step for image in events.Images("samples")] == [2, 4]
    assert main(["train", str(recipe), "--set", "data.prior=none", "--set", "tracker=none", "--run-name", "bare"]) == 0
    assert not RunDirectory("bare").tensorboard.exists()


def test_a_missing_tracker_is_said_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    directory, said = RunDirectory("run", tmp_path), []
    directory.create()
    tracker = open_tracker("wandb", directory, 0, {}, said.append)
    assert isinstance(tracker, TensorBoard)
    assert len(said) == 1
    assert said[0].startswith("tracker: wandb is not installed (pip install 'vega-diffusion[wandb]'); TensorBoard")
    tracker.close()
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    assert open_tracker("tensorboard", directory, 0, {}, said.append) is None
    assert open_tracker(None, directory, 0, {}, said.append) is None
    assert len(said) == 2


def test_the_report_names_what_training_would_see(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "pictures"
    (folder / "same.png").write_bytes((folder / "0.png").read_bytes())
    Image.new("RGB", (40, 40), "red").save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    words = " ".join(f"word{number}" for number in range(90))
    read = TrainRecipe.read(recipe, [f"data.caption={words}"])
    report = report_data(read)
    assert report is not None
    assert report.same_files == ("same.png",)
    assert report.too_small == ("small.png",)
    assert report.curation.left_out == {"unreadable": ("broken.png",)}
    assert set(report.buckets) == {"64x64"}
    assert len(report.buckets["64x64"]) == 6
    assert report.cut_captions["0.png"].replace(" ", "").endswith("word89")
    assert report.held_out == 1
    assert main(["train", str(recipe), "--dry-run", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["same_files"] == ["same.png"]
    assert data["curation"]["kept"] == 6
    assert main(["train", str(recipe), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "the same file as another (first same.png)" in out
    assert "scaled up (first small.png)" in out
    assert not (tmp_path / "home/images").exists()  # nothing was encoded
    assert main(["train", str(recipe), "--dry-run", "--set", "data.folder=/nowhere"]) == 0
    assert "the plan says nothing of the pictures: /nowhere: no such folder" in capsys.readouterr().err


def test_long_captions_are_said_when_training_starts(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = " ".join(f"word{number}" for number in range(90))
    assert main(["train", str(recipe), "--set", f"data.caption={words}", "--set", "data.prior=none"]) == 0
    assert "4 captions are longer than the 77 tokens that are read; of 0.png this is cut off" in capsys.readouterr().err


def test_frozen_weights_may_be_half_and_adapters_are_not(recipe: Path):
    read = TrainRecipe.read(recipe, ["model.dtype=bf16", "mixed_precision=bf16"])
    student = build_parts(read).student
    assert {value.dtype for name, value in student.named_parameters() if "lora_" in name} == {torch.float32}
    assert student.get_parameter("unet.conv_in.weight").dtype == torch.bfloat16
    changes = ["--set=model.dtype=bf16", "--set=mixed_precision=bf16", "--set=data.prior=none", "--set=steps=2"]
    assert main(["train", str(recipe), *changes]) == 0
    last = read_metrics(RunDirectory("subject").metrics)[-1]
    assert 0 < last["held_out_loss"] < 1


def test_micro_batches_hold_all_sources_alike(recipe: Path):
    with pytest.raises(VegaError, match="micro_batch_size: 1 .* multiple of 2"):
        TrainRecipe.read(recipe, ["micro_batch_size=1"])
    three = 'data.prior=[{caption="a cat", num_pictures=2}, {folder="f", target="model"}]'
    with pytest.raises(VegaError, match="micro_batch_size: 2 .* multiple of 3"):
        TrainRecipe.read(recipe, [three, "micro_batch_size=2", "batch_size=6"])
    read = TrainRecipe.read(recipe, [three, "micro_batch_size=3", "batch_size=6"])
    assert [prior.target for prior in cast(Any, read.data).prior] == ["picture", "model"]


@pytest.mark.parametrize(("said", "left_out"), [("", 0.25), (", empty_caption_rate=1.0", 1.0)])
def test_a_guard_leaves_out_a_share_of_captions_of_its_own(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, left_out: float
):
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    assert main(["data", "scenes", "--count", "3", "--output", str(tmp_path / "plain")]) == 0
    guard = f'data.prior={{folder="{tmp_path / "plain"}", target="model"{said}}}'
    read = TrainRecipe.read(recipe, [guard, "data.empty_caption_rate=0.25"])
    spec = load_spec(resolve_model("vega-mini"))
    source = cast(Any, build_source(read, spec, torch.device("cpu"), frozen_components(read, spec)))
    own, guards = source.sources
    assert own.spec.empty_caption_rate == 0.25
    assert guards.spec.empty_caption_rate == left_out
    captions = guards.load(range(32)).captions
    assert (captions.count("") == 32) == (left_out == 1.0)
    assert "" in captions


def test_the_model_before_answers_for_denoisers_alone(recipe: Path):
    teachers = '[{name="t", base="vega-mini", weights="vega-mini", map="same"}]'
    teacher = f'objective={{kind="distillation", teachers={teachers}}}'
    assert TrainRecipe.read(recipe, [teacher]).objective.kind == "distillation"
    with pytest.raises(VegaError, match="data.prior.target: 'model' .* beside a distillation"):
        TrainRecipe.read(recipe, [teacher, 'data.prior.target="model"'])


def test_captions_are_guarded_where_text_encoders_learn_and_the_model_answers(recipe: Path):
    with pytest.raises(VegaError, match="data.prior.text_weight: 0.5 .* 0 without data.prior.target"):
        TrainRecipe.read(recipe, ["data.prior.text_weight=0.5"])
    both = ["data.prior.text_weight=0.5", 'data.prior.target="model"']
    with pytest.raises(VegaError, match="data.prior.text_weight: 0.5 .* 0 where no text encoder learns"):
        TrainRecipe.read(recipe, both)
    read = TrainRecipe.read(recipe, [*both, 'model.train=["unet", "text_encoder"]'])
    before = build_parts(read).before
    assert before is not None
    assert before.text_weights == (0.0, 0.5)


def test_a_subject_is_learnt_beside_two_guards(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    assert main(["data", "scenes", "--count", "3", "--output", str(tmp_path / "plain")]) == 0
    guards = f'[{{caption="a cat", num_pictures=2, target="model"}}, {{folder="{tmp_path / "plain"}", target="model"}}]'
    changes = ["micro_batch_size=3", "batch_size=6", "steps=2", f"data.prior={guards}"]
    arguments = [part for change in changes for part in ("--set", change)]
    assert main(["train", str(recipe), *arguments, "--run-name", "guarded"]) == 0
    assert read_metrics(RunDirectory("guarded").metrics)[-1]["step"] == 2
    assert main(["train", str(recipe), *arguments, "--dry-run"]) == 0
    assert "6 samples" in capsys.readouterr().out
    with pytest.raises(VegaError, match=r"data.max_aspect: 2.0 .* 1.0 \(squares\)"):
        TrainRecipe.read(recipe, ["data.max_aspect=2.0"])
    with pytest.raises(VegaError, match="model.dtype: 'fp16' .* without model.lora"):
        TrainRecipe.read(recipe, ["model.dtype=fp16", "model.lora=none"])


def test_a_teacher_may_be_added_to_any_of_these_jobs(recipe: Path):
    text = recipe.read_text().replace(
        '[objective]\nkind = "denoising"\n',
        '[objective]\nkind = "distillation"\nfeature_level = "none"\nfeature_weight = 0.0\n'
        '[[objective.teachers]]\nname = "before"\nbase = "vega-mini"\nweights = "vega-mini"\nmap = "same"\n',
    )
    recipe.write_text(text)
    assert main(["train", str(recipe), "--set", "sample_every=none"]) == 0
    lines = read_metrics(RunDirectory("subject").metrics)
    assert lines[0]["output"] < 1e-6  # it is its own teacher before the first step
    assert lines[-1]["output"] > 1e-6
    assert all(line["teacher/before"] == 1 for line in lines)
