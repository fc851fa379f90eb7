"""The three scripts in one process: runs of two steps, results that stock diffusers loads, resume, upload, mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from hub_double import TOKEN, HubDouble, hub  # noqa: F401 (a fixture)
from vega_diffusion.cli.diffusers_script import in_flags, main, parse
from vega_diffusion.cli.main import main as vega
from vega_diffusion.errors import VegaError
from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, FULL, LORA, SCRIPTS, Script, flags_of
from vega_diffusion.specs.recipe import TrainRecipe

# ruff: noqa: F811 (fixtures)

Run = Callable[..., int]
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with four captioned pictures in `pictures` and three of a subject in `subject`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    lines = []
    for home, number in (("pictures", 4), ("subject", 3)):
        (tmp_path / home).mkdir()
        for one in range(number):
            Image.effect_noise((80, 72), 30.0 + 20 * one).convert("RGB").save(tmp_path / home / f"{one}.png")
            lines.append(json.dumps({"file_name": f"{one}.png", "text": f"a cat, number {one}"}))
    (tmp_path / "pictures/metadata.jsonl").write_text("\n".join(lines[:4]))
    return tmp_path


@pytest.fixture
def script(folder: Path, tiny_folder: Path) -> Run:
    """Return what runs a script on a tiny model at 64 px: (script, steps, further words) -> exit code."""

    def run(name: Script, steps: int, *more: str) -> int:
        where = ["--instance_data_dir=subject", "--instance_prompt=sks dog"] if name == DREAMBOOTH else []
        where = where or ["--dataset_name=pictures"]
        words = [f"--pretrained_model_name_or_path={tiny_folder}", "--resolution=64", f"--max_train_steps={steps}"]
        return main(name, [*words, *where, "--output_dir=out", "--train_batch_size=2", "--seed=3", *more])

    return run


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of a refusal."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_lora_previews_and_an_upload_of_the_result_alone(
    script: Run, folder: Path, tiny_folder: Path, hub: HubDouble, capsys: pytest.CaptureFixture[str]
):
    previews = ["--validation_prompt=a cat", "--num_validation_images=2", "--train_text_encoder"]
    assert script(LORA, 2, *previews, "--checkpointing_steps=1", "--push_to_hub", f"--hub_token={TOKEN}") == 0
    said = capsys.readouterr()
    assert "LoRA of rank 4 (unet, text_encoder, text_encoder_2)" in said.out
    assert f"uploaded to {hub.endpoint}/someone/out" in said.out
    out = folder / "out"
    assert {path.name for path in (out / "states").iterdir()} == {"step-00000001", "step-00000002"}
    sent = hub.repositories["someone/out"]
    assert sent.keys() == {WEIGHTS, "README.md", "image_0.png", "image_1.png"}
    assert all((out / name).read_bytes() == content for name, content in sent.items())
    card = sent["README.md"].decode()
    for words in ("![image_1.png]", "| optimizer steps | 2 |", "4 pictures of `pictures`", "pictures="):
        assert words in card
    assert str(folder) not in card  # where things lie is nobody's business
    assert "license:" not in card  # the tiny model states none
    for path in [*folder.rglob("*.json*"), *folder.rglob("*.toml"), *folder.rglob("*.md")]:
        assert TOKEN not in path.read_text(errors="replace")
    assert TOKEN not in said.out + said.err

    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    before = pipe.unet.state_dict().keys()
    pipe.load_lora_weights(out)
    assert len(pipe.unet.state_dict()) > len(before)
    assert pipe("a cat", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)

    recipe = TrainRecipe.read(out / "recipe.toml")
    assert recipe.steps == 2
    assert json.loads(recipe.to_json()) == json.loads((out / "recipe.json").read_text())


def test_a_full_fine_tune_leaves_a_whole_pipeline(script: Run, folder: Path, tiny_folder: Path):
    assert script(FULL, 2, "--use_ema", "--center_crop", "--learning_rate=1e-3") == 0
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder / "out")
    assert pipe("a cat", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)
    averages = load_file(folder / "out/ema/unet/diffusion_pytorch_model.safetensors")
    first = load_file(tiny_folder / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, averages[name]) for name, value in pipe.unet.state_dict().items())
    assert any(not torch.equal(value, averages[name]) for name, value in first.items())
    files = {path.name for path in (folder / "out").iterdir()}
    assert {"model_index.json", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"} <= files
    assert {"unet", "vae", "README.md", "recipe.toml", "logs"} <= files
    card = (folder / "out/README.md").read_text()
    assert "A whole model: the U-Net of" in card
    assert "decay 0.9999" in card


def test_dreambooth_goes_on_exactly_and_writes_kohyas_layout(
    script: Run, folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "subject/.cache").mkdir()
    (folder / "subject/notes.txt").write_text("mine")
    kohya = ["--output_kohya_format", "--center_crop", "--checkpointing_steps=2"]
    assert script(DREAMBOOTH, 4, *kohya, "--output_dir=whole") == 0
    assert "left out, since they are no pictures: .cache, notes.txt" in capsys.readouterr().err
    assert script(DREAMBOOTH, 2, *kohya) == 0
    assert script(DREAMBOOTH, 4, *kohya) == 2
    assert "--output_dir: a run stands in" in error_of(capsys)
    state = folder / "out/states/step-00000002"
    shutil.copytree(state, folder / "elsewhere/step-00000002")
    assert script(DREAMBOOTH, 4, *kohya, "--resume_from_checkpoint=latest") == 0
    assert "resuming out after step 2" in capsys.readouterr().err
    copied = [*kohya, "--resume_from_checkpoint=elsewhere/step-00000002", "--output_dir=third"]
    assert script(DREAMBOOTH, 4, *copied) == 0
    for name in (WEIGHTS, "pytorch_lora_weights_kohya.safetensors"):
        whole = (folder / "whole" / name).read_bytes()
        assert whole == (folder / "out" / name).read_bytes()
        assert whole == (folder / "third" / name).read_bytes()
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    pipe.load_lora_weights(folder / "out", weight_name="pytorch_lora_weights_kohya.safetensors")
    assert pipe.get_active_adapters()
    assert (folder / "subject/notes.txt").read_text() == "mine"
    capsys.readouterr()
    assert script(DREAMBOOTH, 6, *kohya, "--resume_from_checkpoint=latest", "--rank=8") == 2
    said = error_of(capsys)
    assert said.startswith("error: --rank: changed from 4 to 8 since the run was saved")
    assert said.endswith("choose another --output_dir")


def test_pictures_of_the_class_are_drawn_and_kohyas_file_holds_text_encoders(
    script: Run, folder: Path, tiny_folder: Path
):
    prior = ["--with_prior_preservation", "--class_prompt=a dog", "--class_data_dir=class", "--num_class_images=2"]
    (folder / "class").mkdir()
    Image.new("RGB", (64, 64), "white").save(folder / "class/mine.png")
    mine = (folder / "class/mine.png").read_bytes()
    assert script(DREAMBOOTH, 1, *prior, "--train_text_encoder", "--output_kohya_format") == 0
    assert len(list((folder / "class").glob("*.png"))) == 2
    assert (folder / "class/mine.png").read_bytes() == mine
    recipe = TrainRecipe.read(folder / "out/recipe.toml")
    assert (recipe.batch_size, recipe.micro_batch_size) == (4, 4)
    kohya = load_file(folder / "out/pytorch_lora_weights_kohya.safetensors")
    assert {name.split("_")[1] for name in kohya} == {"unet", "te1", "te2"}
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    pipe.load_lora_weights(folder / "out", weight_name="pytorch_lora_weights_kohya.safetensors")
    assert pipe.get_list_adapters().keys() == {"unet", "text_encoder", "text_encoder_2"}


def test_the_hub_is_asked_before_training(
    script: Run, folder: Path, hub: HubDouble, capsys: pytest.CaptureFixture[str]
):
    assert script(LORA, 2, "--push_to_hub", "--hub_token=wrong") == 2
    assert "the Hub does not take this token" in error_of(capsys)
    assert script(LORA, 2, "--push_to_hub", "--hub_model_id=others/thing") == 2
    assert "may not write to 'others/thing'" in error_of(capsys)
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # the fixture puts it back
    assert script(LORA, 2, "--push_to_hub") == 2
    assert "the Hub cannot be reached" in error_of(capsys)
    assert not (folder / "out").exists()


def test_an_upload_that_failed_is_made_up_for_and_the_recipe_is_the_run(
    script: Run, folder: Path, hub: HubDouble, capsys: pytest.CaptureFixture[str]
):
    hub.fails = ("/commit/main",)
    assert script(LORA, 1, "--push_to_hub", "--hub_model_id=cats") == 2
    assert "the result is kept, run the same command with --resume_from_checkpoint latest" in error_of(capsys)
    weights = (folder / "out" / WEIGHTS).read_bytes()
    hub.fails = ()
    assert script(LORA, 1, "--push_to_hub", "--hub_model_id=cats", "--resume_from_checkpoint=latest") == 0
    assert hub.repositories["someone/cats"][WEIGHTS] == weights
    # The recipe beside it is the same run, by the project's own command.
    assert vega(["train", "out/recipe.toml", "--run-name", "again"]) == 0
    assert (folder / "home/runs/again/ema" / WEIGHTS).read_bytes() == weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--caption_column=title"],
            "--caption_column: 'title' is not allowed; allowed: a column of the metadata: text",
        ),
        (["--dataset_name=nowhere/at-all"], "--dataset_name: 'nowhere/at-all' (train) cannot be loaded"),
        (["--dataset_name=lambdalabs/pokemon-blip-captions"], "was taken off the Hub"),
        (["--dataset_name=home"], "home' is no folder"),
        (["--pretrained_model_name_or_path=segmind/Segmind-Vega"], "'segmind/Segmind-Vega' is not in the Hub's cache"),
        (
            ["--pretrained_vae_model_name_or_path=some/vae"],
            "'some/vae' is not in the Hub's cache and the Hub cannot be",
        ),
        (["--learning_rate=fast"], "arguments: argument --learning_rate: invalid float value: 'fast'"),
        (["--adam_beta1=2"], "--adam_beta1: 2.0"),
        (["--mixed_precision=int8"], "arguments: argument --mixed_precision: invalid choice: 'int8'"),
        (["--nope"], "arguments: unrecognized arguments: --nope"),
        (["--resume_from_checkpoint=nowhere"], "--resume_from_checkpoint: 'nowhere' holds no saved state"),
        (["--use_8bit_adam", "--max_grad_norm=0"], "--max_grad_norm: 0.0"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    script: Run, folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    if "home" in words[0]:
        (folder / "home").write_text("a file")
    assert script(LORA, 2, *words) == 2
    assert message in error_of(capsys)
    assert not (folder / "out").exists()


def test_what_the_user_has_in_the_folder_stays(script: Run, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "out").mkdir()
    (folder / "out/README.md").write_text("mine")
    assert script(LORA, 1) == 2
    assert "README.md is there, and is not of this run" in error_of(capsys)
    assert [path.name for path in (folder / "out").iterdir()] == ["README.md"]


def test_a_missing_prompt_and_help(capsys: pytest.CaptureFixture[str]):
    assert main(DREAMBOOTH, ["--pretrained_model_name_or_path=x"]) == 2
    assert "the following arguments are required: --instance_prompt" in error_of(capsys)
    for name in SCRIPTS:
        with pytest.raises(SystemExit) as ended:
            main(name, ["--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(f"--{flag.name}" in shown for flag in flags_of(name))


def test_truth_is_read_as_it_is_written():
    words = ["--pretrained_model_name_or_path=x", "--instance_prompt=y"]
    assert parse(DREAMBOOTH, [*words, "--prodigy_decouple=False"])["prodigy_decouple"] is False
    assert parse(DREAMBOOTH, words)["prodigy_decouple"] is True
    with pytest.raises(VegaError, match="'maybe' is neither true nor false"):
        parse(DREAMBOOTH, [*words, "--prodigy_decouple=maybe"])


def test_messages_of_recipes_are_said_in_flags():
    assert in_flags("optimizer.lr: -1 is not allowed") == "--learning_rate: -1 is not allowed"
    assert in_flags("something: else") == "something: else"
    assert in_flags("x; start another run with --run-name") == "x; choose another --output_dir"
