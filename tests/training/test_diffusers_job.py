"""Flags of diffusers' scripts become a recipe: every setting, every flag, and a word on what is not honoured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from script_jobs import PRIOR, RICH, at_home, home, job, pictures  # noqa: F401 (fixtures)
from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable, VegaError
from vega_diffusion.specs.diffusers_flags import (
    DREAMBOOTH,
    FULL,
    LORA,
    SCRIPTS,
    Script,
    with_defaults,
)
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training import diffusers_model
from vega_diffusion.training.diffusers_machine import Machine
from vega_diffusion.training.diffusers_result import continued
from vega_diffusion.training.run_directory import RunDirectory

# ruff: noqa: F811 (fixtures)


def expected(script: Script, pictures: Path) -> dict[str, Any]:
    """Every setting of the recipe that a script's own defaults stand for; what is not here is our recipe's default."""
    lora = {"rank": 4, "dropout": 0.0, "dora": False}
    subject = script == DREAMBOOTH
    return {
        "model": {
            "base": "vega-mini",
            "train": ["unet"],
            "weights": dict.fromkeys(("unet", "vae", "text_encoder", "text_encoder_2"), "vega-mini"),
            "dtype": "fp32",
        }
        | ({} if script == FULL else {"lora": lora}),
        "data": {
            "kind": "image_latents",
            "folder": str(pictures),
            "seed": 1,
            "resolution_px": 128,
            "bucket_step_px": 128,
            "max_aspect": 1.0,
            "interpolation": "lanczos",
            "crop": "random",
            "flip_rate": 0.0,
            # epochs of ours times samples of a step, over the pictures: how often each comes up
            "variants": 2 if subject else 8,
            "empty_caption_rate": 0.0,
            "empty_condition": "encoded",
        }
        | ({"caption": "a photo of sks dog"} if subject else {"caption_column": "text"}),
        "objective": {"kind": "denoising", "min_snr_gamma": None},
        "optimizer": {
            "kind": "adamw",
            "lr": 1e-4,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 1e-4 if subject else 1e-2,
        },
        "lr_schedule": {"kind": "constant", "warmup_steps": 0},
        "ema": None,
        "seed": 1,
        "steps": 2 if subject else 100,
        "batch_size": 4 if subject else 16,
        "micro_batch_size": 4 if subject else 16,
        "max_grad_norm": 1.0,
        "mixed_precision": "no",
        "activation_checkpointing": False,
        "save_every": 500,
        "keep": 1,
        "log_every": 20,
        "sample_every": None,
        "tracker": "tensorboard",
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults_are_those_of_the_original_in_every_setting(script: Script, pictures: Path):
    found = job(script, pictures)
    assert found.recipe == TrainRecipe.from_dict(expected(script, pictures))
    names = {LORA: "sd-model-finetuned-lora", FULL: "sdxl-model-finetuned", DREAMBOOTH: "lora-dreambooth-model"}
    assert found.output_dir == Path.cwd() / names[script]
    assert (found.logging_dir, found.resume, found.kohya, found.hub_model_id, found.tf32) == (
        "logs",
        None,
        False,
        None,
        False,
    )
    stray = ("--instance_data_dir: left out, since they are no pictures: metadata.jsonl",)
    assert found.notes == (stray if script == DREAMBOOTH else ())


SETTINGS: list[tuple[Script, dict[str, Any], dict[str, Any]]] = [
    (LORA, {"train_text_encoder": True}, {"model.train": ["unet", "text_encoder", "text_encoder_2"]}),
    (LORA, {"rank": 8}, {"model.lora.rank": 8, "model.lora.alpha": None}),
    (LORA, {"mixed_precision": "fp16"}, {"mixed_precision": "fp16", "model.dtype": "fp16"}),
    (FULL, {"mixed_precision": "fp16"}, {"mixed_precision": "fp16", "model.dtype": "fp32"}),
    (FULL, {"use_ema": True}, {"ema.decay": 0.9999, "ema.warmup": 10}),
    (FULL, {"snr_gamma": 5.0}, {"objective.min_snr_gamma": 5.0}),
    (FULL, {"use_8bit_adam": True}, {"optimizer.kind": "adamw_8bit", "optimizer.weight_decay": 0.01}),
    (
        FULL,
        {"proportion_empty_prompts": 0.2, "center_crop": True, "random_flip": True},
        {"data.empty_caption_rate": 0.2, "data.crop": "center", "data.flip_rate": 0.5, "data.variants": 8},
    ),
    (FULL, {"center_crop": True}, {"data.crop": "center", "data.variants": 1}),
    (FULL, {"random_flip": True, "num_train_epochs": 1, "train_batch_size": 6}, {"data.variants": 1}),
    (
        FULL,
        {"timestep_bias_strategy": "earlier", "timestep_bias_multiplier": 2.0},
        {"objective.timestep_bias.begin": 0, "objective.timestep_bias.end": 250},
    ),
    (
        FULL,
        {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2.0, "timestep_bias_portion": 0.1},
        {"objective.timestep_bias.begin": 900, "objective.timestep_bias.end": 1000},
    ),
    (
        FULL,
        {"timestep_bias_strategy": "range", "timestep_bias_begin": 10, "timestep_bias_end": 20},
        {"objective.timestep_bias.begin": 10, "objective.timestep_bias.multiplier": 1.0},
    ),
    # Ceil twice: 6 pictures in batches of 4 are 2 batches, of which 3 to a step make 1 step an epoch.
    (LORA, {"train_batch_size": 4, "gradient_accumulation_steps": 3, "num_train_epochs": 5}, {"steps": 5}),
    (
        LORA,
        {"train_batch_size": 4, "gradient_accumulation_steps": 3},
        {"batch_size": 12, "micro_batch_size": 4, "steps": 100},
    ),
    (
        LORA,
        {"max_train_samples": 3, "train_batch_size": 1, "num_train_epochs": 2},
        {"steps": 6, "data.max_pictures": 3},
    ),
    (DREAMBOOTH, {"repeats": 10, "train_batch_size": 1, "num_train_epochs": 2}, {"steps": 120}),
    (
        DREAMBOOTH,
        PRIOR | {"num_class_images": 20, "train_batch_size": 2, "prior_loss_weight": 0.5},
        {
            "steps": 10,
            "batch_size": 4,
            "micro_batch_size": 4,
            "data.prior.0.weight": 0.5,
            "data.prior.0.num_pictures": 20,
            "data.prior.0.caption": "a photo of a dog",
        },
    ),
    (
        LORA,
        {"scale_lr": True, "train_batch_size": 2, "gradient_accumulation_steps": 3, "learning_rate": 1e-5},
        {"optimizer.lr": pytest.approx(6e-5)},
    ),
    (
        DREAMBOOTH,
        {"train_text_encoder": True, "learning_rate": 1e-4, "text_encoder_lr": 5e-5},
        {
            "optimizer.lr_factors.text_encoder": pytest.approx(0.5),
            "optimizer.lr_factors.text_encoder_2": pytest.approx(0.5),
            "optimizer.weight_decays.text_encoder": 1e-3,
            "optimizer.weight_decay": 1e-4,
        },
    ),
    (
        DREAMBOOTH,
        {"optimizer": "Prodigy", "learning_rate": 1.0, "prodigy_beta3": 0.9, "prodigy_safeguard_warmup": False},
        {
            "optimizer.kind": "prodigy",
            "optimizer.lr": 1.0,
            "optimizer.beta3": 0.9,
            "optimizer.decouple": True,
            "optimizer.use_bias_correction": True,
            "optimizer.safeguard_warmup": False,
        },
    ),
    (DREAMBOOTH, {"use_dora": True, "lora_dropout": 0.1}, {"model.lora.dora": True, "model.lora.dropout": 0.1}),
    (
        LORA,
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 5},
        {"lr_schedule.kind": "constant", "lr_schedule.warmup_steps": 5},
    ),
    (
        DREAMBOOTH,
        {"lr_scheduler": "polynomial", "lr_power": 2.0, "lr_warmup_steps": 1, "max_train_steps": 9},
        {"lr_schedule.kind": "polynomial", "lr_schedule.power": 2.0, "lr_schedule.final_factor": pytest.approx(1e-3)},
    ),
    (
        LORA,
        {"validation_prompt": "a cat", "validation_epochs": 2, "train_batch_size": 1, "num_validation_images": 3},
        {"sample_every": 12, "samples.prompts": ["a cat"], "samples.num_images": 3, "samples.seed": 1},
    ),
    (LORA, {"checkpointing_steps": 30}, {"save_every": 30, "keep": 4}),
    (LORA, {"checkpoints_total_limit": 3}, {"keep": 3}),
    (LORA, {"image_interpolation_mode": "nearest_exact"}, {"data.interpolation": "nearest"}),
    (LORA, {"report_to": "none"}, {"tracker": None}),
]


@pytest.mark.parametrize(("script", "changes", "wanted"), SETTINGS)
def test_settings(script: Script, changes: dict[str, Any], wanted: dict[str, Any], pictures: Path):
    recipe = job(script, pictures, **changes).recipe
    data = recipe.model_dump(mode="json")
    for path, value in wanted.items():
        found: Any = data
        for key in path.split("."):
            found = found[int(key) if key.isdigit() and isinstance(found, list) else key]
        assert found == value, path


def test_processes_share_an_epoch_and_a_step(pictures: Path):
    found = job(LORA, pictures, replace(RICH, processes=2), train_batch_size=1, num_train_epochs=2, scale_lr=True)
    assert (found.recipe.steps, found.recipe.batch_size, found.recipe.micro_batch_size) == (6, 2, 1)
    assert found.recipe.optimizer.lr == pytest.approx(2e-4)


POOR = Machine(optimizers={"adamw_8bit": "it needs bitsandbytes", "prodigy": "it needs prodigyopt"})


def test_a_bare_machine_gets_stated_fallbacks(pictures: Path):
    found = job(
        FULL,
        pictures,
        POOR,
        mixed_precision="fp16",
        use_8bit_adam=True,
        report_to="wandb",
        enable_xformers_memory_efficient_attention=True,
    )
    recipe = found.recipe
    assert (recipe.mixed_precision, recipe.optimizer.kind, recipe.tracker) == ("no", "adamw", "tensorboard")
    notes = "\n".join(found.notes)
    for words in (
        "--mixed_precision: fp16 needs a GPU and this machine has none; fp32 is used instead",
        "--use_8bit_adam: it needs bitsandbytes; fused AdamW of 32 bits is used instead",
        "--report_to: wandb is not installed; TensorBoard and metrics.jsonl are used instead",
        "--report_to: tensorboard is not installed; metrics.jsonl alone is written",
        "xformers is not installed; torch's own fused attention is used",
    ):
        assert words in notes
    assert len(found.notes) == 5


def test_a_tracker_that_would_ask_for_a_login_later_is_left_out_now(pictures: Path):
    found = job(LORA, pictures, replace(RICH, wandb_login=False), report_to="wandb")
    assert found.recipe.tracker == "tensorboard"
    assert found.notes == (
        "--report_to: wandb does not know you (wandb login, or WANDB_MODE=offline); TensorBoard and metrics.jsonl are "
        "used instead",
    )
    assert job(LORA, pictures, report_to="all").recipe.tracker == "wandb"
    assert job(LORA, pictures, POOR, report_to="all").recipe.tracker == "tensorboard"


def test_this_machine_can_be_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("WANDB_MODE", "offline")
    here = Machine.here(with_defaults(DREAMBOOTH, report_to="wandb", use_8bit_adam=True, optimizer="prodigy"))
    assert (here.processes, here.launched_precision, here.wandb_login) == (2, "fp16", True)
    assert set(here.optimizers) <= {"adamw_8bit", "prodigy"}
    assert all("\n" not in reason for reason in here.optimizers.values())


def test_what_the_launcher_was_told_counts_where_the_script_was_not(pictures: Path):
    launched = Machine(packages=frozenset({"tensorboard"}), launched_precision="fp16")
    found = job(LORA, pictures, launched)
    assert found.recipe.mixed_precision == "no"
    assert found.notes == (
        "accelerate launch --mixed_precision: fp16 needs a GPU and this machine has none; fp32 is used instead",
    )
    assert job(LORA, pictures, replace(launched, launched_precision="bf16")).recipe.mixed_precision == "bf16"
    both = job(LORA, pictures, replace(launched, has_gpu=True), mixed_precision="no")
    assert (both.recipe.mixed_precision, both.notes) == ("no", ())
    with pytest.raises(InvalidValue, match="accelerate launch --mixed_precision: 'fp8'"):
        job(LORA, pictures, replace(launched, launched_precision="fp8"))


REFUSALS: list[tuple[Script, dict[str, Any], type[VegaError], str]] = [
    (DREAMBOOTH, {"optimizer": "lion"}, InvalidValue, "--optimizer: 'lion'"),
    (DREAMBOOTH, {"optimizer": "prodigy"}, Unavailable, "--optimizer: prodigy cannot run here .it needs prodigyopt"),
    (DREAMBOOTH, {"with_prior_preservation": True}, InvalidValue, "--class_prompt: None"),
    (DREAMBOOTH, {"instance_data_dir": None}, InvalidValue, "--dataset_name, --instance_data_dir: "),
    (LORA, {"dataset_name": "also/this"}, InvalidValue, "exactly one of the two"),
    (LORA, {"train_data_dir": "nowhere"}, MissingFile, "--train_data_dir: .*nowhere' is no folder"),
    (LORA, {"caption_column": "title"}, InvalidValue, "--caption_column: 'title' .* said, text"),
    (LORA, {"lr_scheduler": "piecewise_constant"}, InvalidValue, "--lr_scheduler: 'piecewise_constant'"),
    (LORA, {"lr_scheduler": "cosine"}, InvalidValue, "--lr_warmup_steps: 500 .* fewer than the 100 steps"),
    (DREAMBOOTH, {"lr_num_cycles": 2}, InvalidValue, "--lr_num_cycles: 2"),
    (LORA, {"resolution": 100}, InvalidValue, "--resolution: 100 .* a multiple of .* use "),
    (LORA, {"prediction_type": "sample"}, InvalidValue, "--prediction_type: 'sample'"),
    (LORA, {"report_to": "comet_ml"}, InvalidValue, "--report_to: 'comet_ml'"),
    (LORA, {"variant": "ema"}, InvalidValue, "--variant: 'ema'"),
    (LORA, {"train_batch_size": 0}, InvalidValue, "--train_batch_size: 0"),
    (LORA, {"checkpoints_total_limit": 0}, InvalidValue, "--checkpoints_total_limit: 0"),
    (LORA, {"logging_dir": "/somewhere"}, InvalidValue, "--logging_dir: '/somewhere'"),
    (FULL, {"proportion_empty_prompts": 1.5}, InvalidValue, "--proportion_empty_prompts: 1.5"),
    (
        FULL,
        {"timestep_bias_strategy": "range", "timestep_bias_begin": 900, "timestep_bias_end": 10},
        InvalidValue,
        "--timestep_bias_begin",
    ),
    (FULL, {"timestep_bias_strategy": "later", "timestep_bias_portion": 0.0}, InvalidValue, "--timestep_bias_portion"),
    (
        LORA,
        {"train_data_dir": None, "dataset_name": "lambdalabs/pokemon-blip-captions"},
        Unavailable,
        "was taken off the Hub .* lambdalabs/naruto-blip-captions, or a local folder",
    ),
    (LORA, {"pretrained_model_name_or_path": "nowhere at all"}, InvalidValue, "nowhere at all"),
    (LORA, {"pretrained_vae_model_name_or_path": "no where"}, MissingFile, "--pretrained_vae_model_name_or_path"),
]


@pytest.mark.parametrize(("script", "changes", "kind", "words"), REFUSALS)
def test_mistakes_name_the_flag(
    script: Script, changes: dict[str, Any], kind: type[VegaError], words: str, pictures: Path
):
    with pytest.raises(kind, match=words) as refused:
        job(script, pictures, POOR, **changes)
    assert "\n" not in str(refused.value)


def test_flags_without_effect_are_said(pictures: Path):
    found = job(
        DREAMBOOTH,
        pictures,
        class_prompt="a dog",
        prodigy_beta3=0.5,
        text_encoder_lr=1e-3,
        hub_token="secret",
        num_validation_images=2,
        lr_warmup_steps=3,
        cache_dir="somewhere",
        repeats=2,
        max_train_steps=3,
    )
    named = {note.split(":")[0] for note in found.notes}
    wanted = {"class_prompt", "prodigy_beta3", "text_encoder_lr", "hub_token", "num_validation_images"}
    wanted |= {"lr_warmup_steps", "cache_dir", "repeats", "instance_data_dir"}
    assert named == {f"--{name}" for name in wanted}
    assert "secret" not in "".join(found.notes)
    assert "secret" not in repr(found)


def test_folders_say_what_is_wrong_with_them(tmp_path: Path):
    with pytest.raises(MissingFile, match="--train_data_dir: no pictures in"):
        job(LORA, tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(VegaError, match="none of the 1 pictures in .* has a caption; allowed: metadata.jsonl"):
        job(LORA, tmp_path)
    for name in ("notes.txt", "list.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".cache").mkdir()
    found = job(DREAMBOOTH, tmp_path)
    assert found.num_pictures == 1
    assert found.notes == ("--instance_data_dir: left out, since they are no pictures: .cache, list.csv, notes.txt",)


def test_a_saved_data_set_keeps_its_columns(pictures: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = {"picture": [str(pictures / f"{number}.png") for number in range(2)], "words": ["a", "b"]}
    table = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    named = {"train_data_dir": None, "dataset_name": str(tmp_path / "saved")}
    found = job(LORA, pictures, **named, image_column="picture", caption_column="words")
    assert found.num_pictures == 2
    data: Any = found.recipe.data
    assert (data.dataset, data.image_column, data.caption_column) == (str(tmp_path / "saved"), "picture", "words")
    with pytest.raises(InvalidValue, match="data.caption_column: 'text' .* picture, words"):
        job(LORA, pictures, **named, image_column="picture")


def test_a_run_made_longer_keeps_its_views_of_a_picture(pictures: Path, tmp_path: Path):
    longer = job(LORA, pictures, output_dir=str(tmp_path), resume_from_checkpoint="latest")
    assert longer.recipe.data.variants == 8  # type: ignore[union-attr]
    directory = RunDirectory.at(longer.output_dir)
    assert continued(longer, directory) == longer.recipe  # nothing stands there
    state = directory.states / "step-00000002"
    state.mkdir(parents=True)
    (state / "manifest.json").write_text("{}")
    (state / "state.json").write_text(json.dumps({"step": 2, "identity": {"data.variants": 3}}))
    for resume, views in (("latest", 3), (str(state), 3), (None, 8)):
        recipe = continued(replace(longer, resume=resume), directory)
        assert recipe.data.variants == views  # type: ignore[union-attr]


def test_models_of_the_hub_are_fetched_as_asked(pictures: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path):
    asked: list[Any] = []

    def model(*args: Any) -> Path:
        asked.append(args)
        return tiny_folder

    monkeypatch.setattr(diffusers_model, "fetch_model", model)
    monkeypatch.setattr(diffusers_model, "fetch_autoencoder", lambda *args: model(*args) / "vae")
    found = job(
        LORA,
        pictures,
        pretrained_model_name_or_path="segmind/Segmind-Vega",
        pretrained_vae_model_name_or_path="madebyollin/sdxl-vae-fp16-fix",
        revision="main",
        cache_dir="models",
        resolution=64,
    )
    assert asked == [("segmind/Segmind-Vega", "main", "models"), ("madebyollin/sdxl-vae-fp16-fix", "models")]
    assert found.recipe.model.base == str(tiny_folder)
    assert found.recipe.model.weights == {"vae": str(tiny_folder / "vae")}
    assert (found.base.name, found.base.licence) == ("segmind/Segmind-Vega", "apache-2.0")
    assert found.notes == ()
