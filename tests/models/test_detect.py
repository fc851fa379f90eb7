"""Any diffusers folder is described by its configs: our own, those of others, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig

from vega_diffusion.errors import UnreadableModel
from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.detect import (
    autoencoder_spec,
    detect_spec,
    load_spec,
    schedule_spec,
    text_encoder_spec,
    unet_spec,
)
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import PRESETS, SD_1_5, VEGA, preset


def write_configs(folder: Path, spec: ModelSpec, **unet_changes: Any) -> Path:
    """What a foreign folder has: diffusers' own configs, no vega.json; weights are not needed to describe it."""
    second = spec.text_encoder_2
    with torch.device("meta"):
        UNet2DConditionModel(**(spec.unet.to_config() | unet_changes)).save_config(folder / "unet")
        AutoencoderKL(**spec.autoencoder.to_config()).save_config(folder / "vae")
    scheduler: Any = EulerDiscreteScheduler.from_config(spec.schedule.to_config())
    scheduler.save_config(folder / "scheduler")
    CLIPTextConfig(**spec.text_encoder.to_config()).save_pretrained(folder / "text_encoder")
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    if second is not None:
        CLIPTextConfig(**second.to_config()).save_pretrained(folder / "text_encoder_2")
        index |= {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", PRESETS)
def test_a_foreign_folder_is_described_by_its_configs(name: str, tmp_path: Path) -> None:
    """And takes the preset's generation defaults, so that Segmind-Vega gets guidance 9 and its negative prompt."""
    spec = preset(name)
    found = load_spec(write_configs(tmp_path / "folder", spec))
    assert found.name == "folder"
    assert found.unet == spec.unet
    assert found.autoencoder == spec.autoencoder
    assert found.text_encoder == spec.text_encoder
    assert found.text_encoder_2 == spec.text_encoder_2
    assert found.generation == spec.generation
    assert found.family == spec.family


def test_vega_in_another_spelling_is_still_vega(tmp_path: Path) -> None:
    changes = {
        "transformer_layers_per_block": [0, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 0],
    }
    assert load_spec(write_configs(tmp_path, VEGA, **changes)).generation == VEGA.generation


def test_an_unknown_network_gets_neutral_defaults_at_its_own_size(tmp_path: Path) -> None:
    changes = {"transformer_layers_per_block": [1, 1, 3], "sample_size": 96}
    found = load_spec(write_configs(tmp_path, VEGA, **changes))
    assert (found.generation.guidance_scale, found.generation.width, found.generation.height) == (5.0, 768, 768)
    assert not found.generation.negative_prompt
    assert found.family == "sdxl"


def test_a_config_of_an_old_diffusers_leaves_things_out() -> None:
    """Missing keys have diffusers' defaults, not SDXL's: a bare config is Stable Diffusion 1's shape."""
    kept = ("sample_size", "block_out_channels", "down_block_types", "up_block_types", "attention_head_dim")
    bare = {key: SD_1_5.unet.to_config()[key] for key in kept} | {"cross_attention_dim": 768}
    assert unet_spec(bare) == SD_1_5.unet
    assert autoencoder_spec({}).scaling_factor == 0.18215
    assert autoencoder_spec({}).block_out_channels == (64,)


@pytest.mark.parametrize("name", PRESETS)
def test_configs_of_built_networks_give_the_spec_back(name: str) -> None:
    spec = preset(name)
    with torch.device("meta"):
        assert unet_spec(dict(build_unet(spec.unet).config)) == spec.unet
        assert autoencoder_spec(dict(build_autoencoder(spec.autoencoder).config)) == spec.autoencoder
    assert text_encoder_spec(spec.text_encoder.to_config(), False) == spec.text_encoder


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type: 'timestep' is not supported"),
        ({"num_attention_heads": 8}, "num_attention_heads"),
        ({"addition_embed_type": "image"}, "addition_embed_type"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({"some_new_feature": True}, "some_new_feature: True is not known"),
        ({"block_out_channels": "wide"}, "block_out_channels"),
    ],
)
def test_what_sdxl_does_not_have_is_refused_by_name(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnreadableModel, match=complaint) as caught:
        unet_spec(VEGA.unet.to_config() | changes, "unet/config.json")
    assert str(caught.value).startswith("unet/config.json: ")
    assert "\n" not in str(caught.value)


def test_what_changes_nothing_is_let_pass() -> None:
    harmless = {"class_embed_type": None, "some_new_feature": None, "dual_cross_attention": False, "_private": 1}
    assert unet_spec(VEGA.unet.to_config() | harmless) == VEGA.unet
    assert unet_spec(VEGA.unet.to_config() | {"cross_attention_dim": [2048, 2048, 2048]}) == VEGA.unet


def test_an_autoencoder_of_another_kind_is_refused() -> None:
    config = VEGA.autoencoder.to_config()
    with pytest.raises(UnreadableModel, match="down_block_types"):
        autoencoder_spec(config | {"down_block_types": ["AttnDownEncoderBlock2D"] * 4})
    with pytest.raises(UnreadableModel, match="latents_mean"):
        autoencoder_spec(config | {"latents_mean": [0.0, 0.0, 0.0, 0.0]})


@pytest.mark.parametrize(
    "name",
    ["EulerDiscrete", "EulerAncestralDiscrete", "DDIM", "DPMSolverMultistep", "LCM", "UniPCMultistep", "PNDM"],
)
def test_schedules_of_any_scheduler_class(name: str) -> None:
    name = f"{name}Scheduler"
    config = dict(getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).config)
    spec = schedule_spec(config | {"_class_name": name})
    assert (spec.scheduler, spec.beta_start, spec.beta_end) == (name, 0.00085, 0.012)
    assert spec.timestep_spacing == config["timestep_spacing"]


def test_an_unknown_schedule_is_refused() -> None:
    for config in ({"_class_name": "Nonsense"}, {}, {"_class_name": "AutoencoderKL"}):
        with pytest.raises(UnreadableModel, match="_class_name"):
            schedule_spec(config)
    with pytest.raises(UnreadableModel, match="trained_betas"):
        schedule_spec({"_class_name": "DDIMScheduler", "trained_betas": [0.1]})


def test_a_pipeline_without_unet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}')
    with pytest.raises(UnreadableModel, match="a FluxPipeline is not SDXL-shaped"):
        detect_spec(tmp_path)


def test_vega_json_is_trusted_for_what_configs_cannot_say(tiny_folder: Path, tiny_spec: ModelSpec) -> None:
    content = json.loads((tiny_folder / "vega.json").read_text())
    content["spec"]["generation"]["guidance_scale"] = 3.5
    (tiny_folder / "vega.json").write_text(json.dumps(content))
    assert load_spec(tiny_folder).generation.guidance_scale == 3.5
    (tiny_folder / "vega.json").unlink()
    assert load_spec(tiny_folder).unet == tiny_spec.unet


def test_vega_json_that_contradicts_the_configs_is_refused(tiny_folder: Path) -> None:
    edit(tiny_folder / "vae" / "config.json", scaling_factor=0.5)
    with pytest.raises(UnreadableModel, match="autoencoder is not what its config file says"):
        load_spec(tiny_folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "not valid JSON"), ('{"schema": 2, "spec": {}}', "schema: 2"), ('{"schema": 1}', "vega.json")],
)
def test_a_bad_vega_json_is_one_line(tiny_folder: Path, text: str, complaint: str) -> None:
    (tiny_folder / "vega.json").write_text(text)
    with pytest.raises(UnreadableModel, match=complaint) as caught:
        load_spec(tiny_folder)
    assert "\n" not in str(caught.value)
