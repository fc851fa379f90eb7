"""Single-file checkpoints: diffusers' own readers lead every tensor back to where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tiny_models import write_folder
from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel
from vega_diffusion.models.build import build_component
from vega_diffusion.models.checkpoint import load_component
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.layout import WEIGHT_STEMS, weight_filename
from vega_diffusion.models.single_file import places, to_single_file
from vega_diffusion.models.single_file_model import write_model_folder, write_single_file
from vega_diffusion.models.tokenizer import byte_tokenizer
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import PRESETS, SD_1_5, SDXL, SSD_1B, VEGA


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
    assert len(to_single_file(component, _on_meta(SDXL, component))) == count


@pytest.mark.parametrize("spec", [SDXL, SSD_1B, VEGA], ids=lambda spec: spec.name)
def test_every_tensor_of_a_full_size_unet_comes_back(spec: ModelSpec):
    state = _numbered(_on_meta(spec, "unet"))
    found: Any = convert_ldm_unet_checkpoint(
        to_single_file("unet", state), spec.unet.to_config() | {"class_embed_type": None}
    )
    assert {key: int(value) for key, value in found.items()} == {key: int(value) for key, value in state.items()}


def test_every_tensor_of_a_full_size_autoencoder_comes_back():
    state = _on_meta(SDXL, "vae")
    found = convert_ldm_vae_checkpoint(to_single_file("vae", state), SDXL.autoencoder.to_config())
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        key: tuple(value.shape) for key, value in state.items()
    }
    numbers = {key: number for number, key in enumerate(state)}
    named = {place.key: torch.tensor(numbers[key]) for key, place in places("vae", state).items()}
    back = convert_ldm_vae_checkpoint(named, SDXL.autoencoder.to_config())
    assert {key: int(value) for key, value in back.items()} == numbers


def test_the_only_encoder_of_stable_diffusion_1_has_its_own_place():
    found = to_single_file("text_encoder", _on_meta(SD_1_5, "text_encoder"), has_two=False)
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
        places("text_encoder_2", ["text_model.extra.weight"])
    with pytest.raises(ValueError, match="hold no 'vae_tiny'"):
        places("vae_tiny", [])


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "without our metadata"])
def test_a_folder_comes_back_bit_for_bit(tmp_path: Path, is_ours: bool):
    spec = PRESETS["vega-mini"]
    schedule = spec.schedule.model_copy(update={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    source = write_folder(spec.model_copy(update={"schedule": schedule}), tmp_path / "source")
    file = tmp_path / "one.safetensors"
    write_single_file(source, file)
    extra = {}
    if not is_ours:  # with what files of others hold beside the weights
        extra = {
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
            "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        }
        save_file(load_file(file) | extra, file)
    _, left = write_model_folder(file, tmp_path / "back", source)
    assert left == sorted(extra)

    back, written = load_spec(tmp_path / "back"), load_spec(source)
    assert back.name == "back"
    assert back.unet == written.unet
    assert back.schedule == written.schedule
    assert back.autoencoder == written.autoencoder
    for component in WEIGHT_STEMS:
        path = Path(component) / weight_filename(component, "fp32")
        before, after = load_file(source / path), load_file(tmp_path / "back" / path)
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items()), component
    for name in ("tokenizer/vocab.json", "tokenizer_2/merges.txt", "tokenizer_2/tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_bfloat16_becomes_float32_without_loss(tiny_folder: Path, tmp_path: Path):
    file = tmp_path / "one.safetensors"
    write_single_file(tiny_folder, file, "fp32")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    halved = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(file).items()}
    save_file(halved, file, metadata=metadata)
    write_model_folder(file, tmp_path / "back", tiny_folder)
    written = load_file(tmp_path / "back" / "unet" / weight_filename("unet", "fp32"))
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(written["conv_in.weight"], halved[key].float())


def test_a_file_of_an_unknown_or_incomplete_model_is_refused(tiny_folder: Path, tmp_path: Path):
    file, back = tmp_path / "one.safetensors", tmp_path / "back"
    write_single_file(tiny_folder, file, "fp16")
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()

    def refused(match: str, content: dict[str, torch.Tensor], described: bool) -> None:
        save_file(content, file, metadata=metadata if described else None)
        with pytest.raises(UnreadableModel, match=match):
            write_model_folder(file, back, tiny_folder)
        assert not back.exists()

    refused("of no known model; nearest is", tensors, False)
    lost = "first_stage_model.decoder.mid.attn_1.q.weight"
    refused(f"vae of tiny: 1 tensors are missing .*{lost}", {k: v for k, v in tensors.items() if k != lost}, True)
    turned = "conditioner.embedders.1.model.token_embedding.weight"
    refused(f"text_encoder_2 of tiny: 1 tensors .*{turned}", tensors | {turned: tensors[turned].T.contiguous()}, True)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnreadableModel, match="truncated"):
        write_model_folder(file, back, tiny_folder)
    with pytest.raises(MissingFile, match="is not there"):
        write_model_folder(tmp_path / "none.safetensors", back, tiny_folder)
    write_single_file(tiny_folder, file, "fp16")
    byte_tokenizer(600).write(tiny_folder / "tokenizer_2")
    with pytest.raises(InvalidValue, match="tokenizer_2 of at most 520 words, not 600"):
        write_model_folder(file, back, tiny_folder)
    assert not back.exists()


def _on_meta(spec: ModelSpec, component: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build_component(spec, component).state_dict()


def _numbered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state in which every tensor is a number of its own."""
    return {key: torch.tensor(number) for number, key in enumerate(state)}
