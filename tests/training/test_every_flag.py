"""A walk through all 186 flags of diffusers' three scripts: each moves recipe or job, is answered, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from script_jobs import PRIOR, at_home, home, job, pictures  # noqa: F401 (fixtures)
from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, SCRIPTS, Flag, Script, flags_of

# ruff: noqa: F811 (fixtures)

# Flag -> a value that is not its default, where the type alone does not tell one.
VALUES: dict[str, Any] = {
    "variant": "fp16",
    "pretrained_model_name_or_path": "mini-sdxl",
    "pretrained_vae_model_name_or_path": "mini-sdxl",
    "caption_column": "said",
    "resolution": 64,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 7,
    "timestep_bias_strategy": "later",
    "optimizer": "prodigy",
    "prediction_type": "v_prediction",
    "report_to": "wandb",
    "mixed_precision": "bf16",
    "prior_generation_precision": "fp32",
    "image_interpolation_mode": "bicubic",
    "lora_dropout": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "prodigy_beta3": 0.5,
    "proportion_empty_prompts": 0.5,
    "timestep_bias_portion": 0.5,
    "timestep_bias_begin": 100,
    "timestep_bias_end": 900,
    "checkpointing_steps": 3,
    "max_train_steps": 77,
    "max_train_samples": 3,
}
RANGE = {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 2.0}
PRODIGY = {"optimizer": "prodigy"}
TEXT = {"train_text_encoder": True}
# Flag -> what must be given as well for it to mean something.
BESIDE: dict[str, dict[str, Any]] = {
    "class_data_dir": PRIOR,
    "class_prompt": PRIOR,
    "num_class_images": PRIOR,
    "prior_loss_weight": PRIOR,
    "sample_batch_size": PRIOR,
    "prior_generation_precision": PRIOR,
    "with_prior_preservation": {"class_prompt": "a photo of a dog"},
    "text_encoder_lr": TEXT,
    "adam_weight_decay_text_encoder": TEXT,
    "lr_num_cycles": {"lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 0, "max_train_steps": 9},
    "lr_power": {"lr_scheduler": "polynomial", "lr_warmup_steps": 0, "max_train_steps": 9},
    "lr_warmup_steps": {"lr_scheduler": "linear", "max_train_steps": 1000},
    "lr_scheduler": {"lr_warmup_steps": 0},
    "timestep_bias_multiplier": {"timestep_bias_strategy": "later"},
    "timestep_bias_portion": {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2.0},
    "timestep_bias_begin": RANGE,
    "timestep_bias_end": RANGE,
    "timestep_bias_strategy": {"timestep_bias_multiplier": 2.0},
    "prodigy_beta3": PRODIGY,
    "prodigy_decouple": PRODIGY,
    "prodigy_use_bias_correction": PRODIGY,
    "prodigy_safeguard_warmup": PRODIGY,
    "hub_token": {"push_to_hub": True},
    "hub_model_id": {"push_to_hub": True},
    "num_validation_images": {"validation_prompt": "a dog"},
    "validation_epochs": {"validation_prompt": "a dog", "max_train_steps": 1000},
    "num_train_epochs": {"max_train_steps": None},
    "checkpoints_total_limit": {"max_train_steps": 1000},
}
# What moves neither recipe nor job, and is answered with a line.
ANSWERED = {
    "revision",  # the model of these tests is on this machine
    "dataloader_num_workers",
    "debug_loss",
    "enable_npu_flash_attention",
    "enable_xformers_memory_efficient_attention",
    "local_rank",
    "prior_generation_precision",
    "sample_batch_size",
}
REFUSED = {"do_edm_style_training", "dataset_config_name"}
ROWS = [(script, flag) for script in SCRIPTS for flag in flags_of(script)]


def value_for(flag: Flag, script: Script, other: Path) -> Any:
    if flag.name in VALUES:
        return VALUES[flag.name]
    if flag.name in ("train_data_dir", "instance_data_dir", "dataset_name"):
        return str(other)
    default = flag.default_in(script)
    match flag.kind:
        case "switch" | "bool":
            return not default
        case "int":
            return (default or 1) + 1
        case "float":
            return (default or 1.0) * 2
        case "text":
            return f"another {flag.name}"


def test_there_are_as_many_rows_as_the_originals_have():
    assert len(ROWS) == 186


@pytest.mark.parametrize(("script", "flag"), ROWS, ids=[f"{script[6:]}-{flag.name}" for script, flag in ROWS])
def test_every_flag_is_honoured_answered_or_refused(script: Script, flag: Flag, pictures: Path, tmp_path: Path):
    name, other = flag.name, tmp_path / "other"
    other.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (number * 40, 9, 9)).save(other / f"{number}.png")
        (other / f"{number}.txt").write_text("a bird")
    beside = dict(BESIDE.get(name, {}))
    if name == "image_column":  # columns are of data sets; a folder of files has none
        with pytest.raises(InvalidValue, match="--image_column: 'another image_column'"):
            job(script, pictures, image_column="another image_column")
        return
    if name == "dataset_name":
        beside |= {"train_data_dir" if script != DREAMBOOTH else "instance_data_dir": None}
    changes = beside | {name: value_for(flag, script, other)}
    if name in REFUSED:
        with pytest.raises(InvalidValue, match=f"^--{name}: "):
            job(script, pictures, **changes)
        return
    before = job(script, pictures, **({} if name == "dataset_name" else beside)) if beside else job(script, pictures)
    after = job(script, pictures, **changes)
    new = [note for note in after.notes if note not in before.notes]
    moved = replace(after, notes=()) != replace(before, notes=())
    if name in ANSWERED:
        assert len(new) == 1, new
        assert new[0].startswith(f"--{name}: ")
    else:
        assert moved, "no effect, and nothing said"
    assert all("\n" not in note for note in after.notes)
