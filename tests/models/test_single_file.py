"""Single-file checkpoints: diffusers' own readers lead every tensor back to where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.build import build_component
from vega_diffusion.models.checkpoint import load_component
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.layout import WEIGHT_STEMS
from vega_diffusion.models.single_file import single_file_tensors, write_single_file
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import SD_1_5, SDXL, SSD_1B, VEGA


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_diffusers_reads_the_same_numbers_back(tiny_folder: Path, tmp_path: Path, precision: Any):
    spec = load_spec(tiny_folder)
    assert spec.text_encoder_2 is not None
    assert spec.text_encoder_2.hidden_size == spec.text_encoder_2.projection_dim
    file = tmp_path / "tiny.safetensors"
    written, count = write_single_file(tiny_folder, file, precision)
    dtype = torch.float32 if precision == "fp32" else torch.float16
    tensors = load_file(file)
    assert written == spec
    assert count == len(tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    with safe_open(file, "pt") as opened:
        assert ModelSpec.from_json(opened.metadata()["vega_spec"]) == spec

    read: Any = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(tiny_folder), local_files_only=True, torch_dtype=dtype
    )
    for component in WEIGHT_STEMS:
        ours = load_component(tiny_folder, spec, component, dtype).state_dict()
        theirs = getattr(read, component).state_dict()
        assert theirs.keys() == ours.keys()
        for key, tensor in ours.items():
            assert torch.equal(theirs[key], tensor), f"{component}.{key}"


# Tensors of `sd_xl_base_1.0.safetensors` without the two that hold no weights of a picture: position ids, logit scale.
@pytest.mark.parametrize(
    ("component", "count"), [("unet", 1680), ("vae", 248), ("text_encoder", 196), ("text_encoder_2", 389)]
)
def test_sdxl_has_the_tensors_of_its_own_file(component: str, count: int):
    assert len(single_file_tensors(component, _on_meta(SDXL, component))) == count


@pytest.mark.parametrize("spec", [SDXL, SSD_1B, VEGA], ids=lambda spec: spec.name)
def test_every_tensor_of_a_full_size_unet_comes_back(spec: ModelSpec):
    state = _numbered(_on_meta(spec, "unet"))
    found: Any = convert_ldm_unet_checkpoint(
        single_file_tensors("unet", state), spec.unet.to_config() | {"class_embed_type": None}
    )
    assert {key: int(value) for key, value in found.items()} == {key: int(value) for key, value in state.items()}


def test_every_tensor_of_a_full_size_autoencoder_comes_back():
    state = _on_meta(SDXL, "vae")
    found = convert_ldm_vae_checkpoint(single_file_tensors("vae", state), SDXL.autoencoder.to_config())
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        key: tuple(value.shape) for key, value in state.items()
    }
    numbered = _numbered(state)
    back = convert_ldm_vae_checkpoint(single_file_tensors("vae", numbered), SDXL.autoencoder.to_config())
    assert {key: int(value) for key, value in back.items()} == {key: int(value) for key, value in numbered.items()}


def test_the_only_encoder_of_stable_diffusion_1_has_its_own_place():
    found = single_file_tensors("text_encoder", _on_meta(SD_1_5, "text_encoder"), has_two=False)
    assert "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight" in found
    assert len(found) == 196


def test_a_model_that_predicts_v_says_so(tiny_folder: Path, tiny_spec: ModelSpec, tmp_path: Path):
    from vega_diffusion.models.export import write_description

    marked = {}
    for name, changes in {
        "eps": {},
        "v": {"prediction_type": "v_prediction"},
        "v0": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    }.items():
        schedule = tiny_spec.schedule.model_copy(update=changes)
        write_description(tiny_folder, tiny_spec.model_copy(update={"schedule": schedule}))
        write_single_file(tiny_folder, tmp_path / "one.safetensors", "fp16")
        marked[name] = {"v_pred", "ztsnr"} & load_file(tmp_path / "one.safetensors").keys()
    assert marked == {"eps": set(), "v": {"v_pred"}, "v0": {"v_pred", "ztsnr"}}

    schedule = tiny_spec.schedule.model_copy(update={"prediction_type": "sample"})
    write_description(tiny_folder, tiny_spec.model_copy(update={"schedule": schedule}))
    with pytest.raises(InvalidValue, match="keep the model folder"):
        write_single_file(tiny_folder, tmp_path / "two.safetensors")
    assert not (tmp_path / "two.safetensors").exists()


def test_names_that_have_no_place_are_refused():
    with pytest.raises(ValueError, match="no place"):
        single_file_tensors("text_encoder_2", {"text_model.extra.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="hold no 'vae_tiny'"):
        single_file_tensors("vae_tiny", {})


def _on_meta(spec: ModelSpec, component: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_component(spec, component).state_dict()


def _numbered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state in which every tensor is a number of its own."""
    return {key: torch.tensor(number) for number, key in enumerate(state)}
