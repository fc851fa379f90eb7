"""Reading components: equal to what was written and to what diffusers and transformers read; strict when it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

from vega_diffusion.errors import MissingFile, UnreadableModel
from vega_diffusion.models.checkpoint import (
    load_autoencoder,
    load_scheduler_config,
    load_text_encoder,
    load_tokenizer,
    load_unet,
)
from vega_diffusion.models.export import ModelParts
from vega_diffusion.specs.architecture import ModelSpec

Loader = Callable[[Path, ModelSpec, torch.dtype | None], nn.Module]


def _second(folder: Path, spec: ModelSpec, dtype: torch.dtype | None) -> nn.Module:
    assert spec.text_encoder_2 is not None
    return load_text_encoder(folder, "text_encoder_2", spec.text_encoder_2, dtype)


LOADERS: dict[str, Loader] = {
    "unet": lambda folder, spec, dtype: load_unet(folder, spec.unet, dtype),
    "vae": lambda folder, spec, dtype: load_autoencoder(folder, spec.autoencoder, dtype),
    "text_encoder": lambda folder, spec, dtype: load_text_encoder(folder, "text_encoder", spec.text_encoder, dtype),
    "text_encoder_2": _second,
}


def part(parts: ModelParts, component: str) -> nn.Module:
    return parts.autoencoder if component == "vae" else getattr(parts, component)


def weight_file(folder: Path, component: str) -> Path:
    return next(path for path in (folder / component).glob("*.safetensors") if ".fp16" not in path.name)


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_read_is_what_was_written(
    tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts, component: str, dtype: torch.dtype | None
) -> None:
    module = LOADERS[component](tiny_folder, tiny_spec, dtype)
    original = part(tiny_parts, component).state_dict()
    # bfloat16 is cast from the fp16 file.
    path = [torch.float16, torch.bfloat16] if dtype == torch.bfloat16 else [dtype or torch.float32]
    for key, value in module.state_dict().items():
        expected = original[key]
        for step in path:
            expected = expected.to(step)
        assert torch.equal(value, expected), key
    assert module.state_dict().keys() == original.keys()
    assert not module.training
    assert all(tensor.device.type == "cpu" for tensor in (*module.parameters(), *module.buffers()))


def test_a_read_text_encoder_computes_what_the_written_one_does(
    tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts
) -> None:
    """Also the buffer that no file holds (positions) must be right."""
    tokens = torch.randint(0, 520, (2, 77), generator=torch.Generator().manual_seed(0))
    for component, attribute in (("text_encoder", "last_hidden_state"), ("text_encoder_2", "text_embeds")):
        with torch.no_grad():
            got = getattr(LOADERS[component](tiny_folder, tiny_spec, None)(tokens), attribute)
            wanted = getattr(part(tiny_parts, component)(tokens), attribute)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("variant", ["fp16", None])
def test_the_pipeline_of_diffusers_reads_the_folder(
    tiny_folder: Path, tiny_spec: ModelSpec, variant: str | None
) -> None:
    """The card's snippet: from_pretrained with and without variant gives the same weights as our reader."""
    dtype = torch.float16 if variant else torch.float32
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        tiny_folder, torch_dtype=dtype, use_safetensors=True, variant=variant
    )
    for component, load in LOADERS.items():
        theirs, ours = getattr(pipeline, component).state_dict(), load(tiny_folder, tiny_spec, dtype).state_dict()
        assert theirs.keys() == ours.keys()
        for key, value in ours.items():
            assert value.dtype == dtype
            assert torch.equal(theirs[key], value), f"{component}: {key}"
    assert pipeline.vae.config.scaling_factor == tiny_spec.autoencoder.scaling_factor == 0.7
    for name in ("tokenizer", "tokenizer_2"):
        theirs, ours = getattr(pipeline, name), load_tokenizer(tiny_folder, name)
        assert theirs("A cat!", padding="max_length").input_ids == ours("A cat!", padding="max_length").input_ids


def test_the_pipeline_draws(tiny_folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    result: Any = pipeline("a cat", negative_prompt="sketch", num_inference_steps=2, width=64, height=64)
    image = result.images[0]
    assert image.size == (64, 64)


def test_a_text_encoder_saved_by_transformers_is_read(
    tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts
) -> None:
    """What transformers 5 writes lacks the prefix `text_model.`; such folders exist, so they must load."""
    assert isinstance(tiny_parts.text_encoder, CLIPTextModel)
    shutil.rmtree(tiny_folder / "text_encoder")
    tiny_parts.text_encoder.save_pretrained(tiny_folder / "text_encoder")
    module = load_text_encoder(tiny_folder, "text_encoder", tiny_spec.text_encoder)
    for key, value in tiny_parts.text_encoder.state_dict().items():
        assert torch.equal(module.state_dict()[key], value)


def test_shards_are_read_together(tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts) -> None:
    shutil.rmtree(tiny_folder / "unet")
    tiny_parts.unet.save_pretrained(tiny_folder / "unet", max_shard_size="200KB")
    assert len(list((tiny_folder / "unet").glob("*.safetensors"))) > 1
    unet = load_unet(tiny_folder, tiny_spec.unet)
    for key, value in tiny_parts.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[key], value)


def test_an_autoencoder_with_old_names_is_read(tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts) -> None:
    """Before diffusers 0.18 attention was named query, key, value, proj_attn; some held it as 1x1 convolutions."""
    path = weight_file(tiny_folder, "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in load_file(path).items():
        for new, name in old.items():
            if f".attentions.0.{new}." in key:
                key = key.replace(f".{new}.", f".{name}.")
                value = value[:, :, None, None] if value.dim() == 2 else value
        renamed[key] = value.contiguous()
    assert any(".query." in key for key in renamed)
    save_file(renamed, path)
    autoencoder = load_autoencoder(tiny_folder, tiny_spec.autoencoder)
    for key, value in tiny_parts.autoencoder.state_dict().items():
        assert torch.equal(autoencoder.state_dict()[key], value)


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tiny_folder: Path, tiny_spec: ModelSpec, component: str, kept: float) -> None:
    path = weight_file(tiny_folder, component)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UnreadableModel, match="truncated or not a safetensors file") as caught:
        LOADERS[component](tiny_folder, tiny_spec, torch.float32)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda tensors: tensors.popitem(), "missing"),
        (lambda tensors: tensors.update(strange=torch.zeros(1)), "strange has no place"),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3, 1, 4)}), r"wanted \["),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tiny_folder: Path, tiny_spec: ModelSpec, component: str, damage: Callable[[dict], None], complaint: str
) -> None:
    """Nothing may be left at random values in silence, as transformers does with a warning."""
    path = weight_file(tiny_folder, component)
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(UnreadableModel, match=complaint) as caught:
        LOADERS[component](tiny_folder, tiny_spec, torch.float32)
    assert "\n" not in str(caught.value)


def test_tokenizers_pad_as_sdxl_does(tiny_folder: Path) -> None:
    first, second = (load_tokenizer(tiny_folder, name) for name in ("tokenizer", "tokenizer_2"))
    assert (first.pad_token_id, second.pad_token_id) == (519, 0)
    assert first.model_max_length == second.model_max_length == 77


def test_bad_tokenizer_files_are_one_line(tiny_folder: Path) -> None:
    (tiny_folder / "tokenizer" / "vocab.json").write_text("[]")
    with pytest.raises(UnreadableModel, match="not a CLIP tokenizer") as caught:
        load_tokenizer(tiny_folder, "tokenizer")
    assert "\n" not in str(caught.value)
    (tiny_folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(MissingFile, match=r"merges\.txt"):
        load_tokenizer(tiny_folder, "tokenizer")


def test_scheduler_config_is_what_the_file_says(tiny_folder: Path) -> None:
    path = tiny_folder / "scheduler" / "scheduler_config.json"
    assert load_scheduler_config(tiny_folder) == json.loads(path.read_text())
    assert load_scheduler_config(tiny_folder)["timestep_spacing"] == "leading"
