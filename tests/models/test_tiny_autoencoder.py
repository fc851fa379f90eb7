"""Tiny autoencoders: diffusers' shapes, diffusers' outputs, folders of every kind, and errors in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable, UnreadableModel, VegaError
from vega_diffusion.models.autoencoder import build_tiny_autoencoder
from vega_diffusion.models.build import build_component
from vega_diffusion.models.checkpoint import load_tiny_autoencoder
from vega_diffusion.models.detect import tiny_autoencoder_spec
from vega_diffusion.models.find import find_folder
from vega_diffusion.models.layout import read_json
from vega_diffusion.models.tiny_folder import find_tiny, tiny_home
from vega_diffusion.specs.presets import PRESETS, preset
from vega_diffusion.specs.tiny_autoencoder import MINI_TINY, TAESD, TinyAutoencoderSpec, tiny_autoencoder_of

SMALL = TinyAutoencoderSpec(
    encoder_block_out_channels=(8,) * 4,
    decoder_block_out_channels=(8,) * 4,
    num_encoder_blocks=(0, 1, 1, 1),
    num_decoder_blocks=(1, 1, 1, 0),
)


@pytest.fixture
def taesd(tmp_path: Path) -> Path:
    """A folder such as `taesdxl`, written by diffusers itself."""
    torch.manual_seed(0)
    build: Any = AutoencoderTiny
    build(**SMALL.to_config()).save_pretrained(tmp_path / "taesdxl")
    return tmp_path / "taesdxl"


def test_the_defaults_are_those_of_diffusers_and_the_counts_are_stated() -> None:
    with torch.device("meta"):
        theirs, ours = AutoencoderTiny(), build_tiny_autoencoder(TAESD)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == 2_445_063
    assert sum(p.numel() for p in ours.decoder.parameters()) == 1_222_531
    assert "2,445,063 parameters, 1,222,531 to decode" in (TinyAutoencoderSpec.__doc__ or "")
    assert tiny_autoencoder_spec(dict(theirs.config)) == TAESD


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_has_one_that_fits_its_latents(name: str) -> None:
    spec = preset(name)
    tiny = tiny_autoencoder_of(spec)
    assert (tiny.latent_channels, tiny.downscale) == (spec.autoencoder.latent_channels, spec.autoencoder.downscale)
    assert tiny == (MINI_TINY if spec.family == "mini" else TAESD)
    with torch.device("meta"):
        module: Any = build_component(spec, "vae_tiny")
        assert module.decode(torch.zeros(1, 4, 8, 8)).sample.shape == (1, 3, 64, 64)
        assert module.encode(torch.zeros(1, 3, 64, 64)).latents.shape == (1, 4, 8, 8)


def test_a_folder_that_diffusers_wrote_is_read_with_equal_outputs(taesd: Path) -> None:
    assert find_tiny(str(taesd)) == taesd
    spec = tiny_autoencoder_spec(read_json(taesd / "config.json"))
    assert spec == SMALL
    ours = load_tiny_autoencoder(taesd, spec)
    theirs: Any = AutoencoderTiny.from_pretrained(taesd)
    latents, pixels = torch.randn(1, 4, 4, 4) * 5, torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(ours.decode(latents).sample, theirs.decode(latents).sample)  # type: ignore[union-attr]
        assert torch.equal(ours.encode(pixels).latents, theirs.encode(pixels).latents)  # type: ignore[union-attr]
    assert load_tiny_autoencoder(taesd, spec, torch.bfloat16).dtype == torch.bfloat16


def test_configs_as_the_published_ones_are_understood() -> None:
    # taesdxl and taesd on the Hub, written by diffusers 0.20: no shift_factor, no upsample_fn.
    published = {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": "0.20.0.dev0",
        "act_fn": "relu",
        "decoder_block_out_channels": [64, 64, 64, 64],
        "encoder_block_out_channels": [64, 64, 64, 64],
        "force_upcast": False,
        "in_channels": 3,
        "latent_channels": 4,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": [3, 3, 3, 1],
        "num_encoder_blocks": [1, 3, 3, 3],
        "out_channels": 3,
        "scaling_factor": 1.0,
        "upsampling_scaling_factor": 2,
    }
    assert tiny_autoencoder_spec(published) == TAESD


def test_the_embedded_model_has_one() -> None:
    home = find_tiny("vega-mini")
    assert home == find_folder("vega-mini") / "vae_tiny"
    assert tiny_autoencoder_spec(read_json(home / "config.json")) == MINI_TINY
    files = {path.name: path.stat().st_size for path in home.iterdir()}
    assert set(files) == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    assert sum(files.values()) < 2**20
    theirs: Any = AutoencoderTiny.from_pretrained(home, variant="fp16")
    ours = load_tiny_autoencoder(home, MINI_TINY, torch.float32)
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        shown = ours.decode(latents).sample  # type: ignore[union-attr]
        assert torch.equal(shown, theirs.float().decode(latents).sample)


def test_folders_without_one(tiny_folder: Path, tmp_path: Path) -> None:
    assert tiny_home(tiny_folder) is None
    assert tiny_home(tiny_folder / "vae") is None, "a full autoencoder is none"
    for reference in (str(tiny_folder), str(tmp_path / "nowhere")):
        with pytest.raises(MissingFile, match=r"vae_tiny.*taesdxl.*vae_tiny/"):
            find_tiny(reference)
    with pytest.raises(Unavailable, match=r"somebody/taesdxl.*Hub") as error:
        find_tiny("somebody/taesdxl")
    assert "\n" not in str(error.value)


def test_damaged_folders_are_one_line(taesd: Path) -> None:
    weights = taesd / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    spec = tiny_autoencoder_spec(read_json(taesd / "config.json"))
    found: list[VegaError] = []
    with pytest.raises(UnreadableModel, match="truncated") as error:
        load_tiny_autoencoder(taesd, spec)
    found.append(error.value)
    weights.write_bytes(content)
    with pytest.raises(UnreadableModel, match="do not fit") as error:
        load_tiny_autoencoder(taesd, TAESD.model_copy(update={"num_decoder_blocks": (3, 3, 3, 2)}))
    found.append(error.value)
    weights.unlink()
    with pytest.raises(UnreadableModel, match="vae_tiny has no weights") as error:
        load_tiny_autoencoder(taesd, spec)
    found.append(error.value)
    assert all("\n" not in str(one) for one in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL is no tiny autoencoder"),
        ({"num_decoder_blocks": [1, 1]}, "num_decoder_blocks"),
        ({"decoder_block_out_channels": [8, 8, 8, 16]}, "one width"),
        ({"encoder_block_out_channels": [8, 8, 8]}, "4 entries"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor"),
        ({"mid_block_add_attention": True}, "mid_block_add_attention"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(taesd: Path, change: dict[str, Any], said: str) -> None:
    path = taesd / "config.json"
    path.write_text(json.dumps(read_json(path) | change))
    with pytest.raises((UnreadableModel, InvalidValue), match=said):
        tiny_autoencoder_spec(read_json(path), str(path))


def test_a_model_folder_may_hold_one(tiny_folder: Path, taesd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    shutil.copytree(taesd, folder / "vae_tiny")
    assert find_tiny(str(folder)) == folder / "vae_tiny"
