"""Tiny SDXL-shaped model folders with random weights, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.tokenizer import byte_tokenizer
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import preset


def write_folder(spec: ModelSpec, folder: Path) -> Path:
    """Write a model of that spec with random weights."""
    torch.manual_seed(0)
    assert spec.text_encoder_2 is not None
    tokenizers = [byte_tokenizer(spec.text_encoder.vocab_size, *pad) for pad in ((), ("!",))]
    pipeline = StableDiffusionXLPipeline(
        vae=build_autoencoder(spec.autoencoder),
        text_encoder=build_text_encoder(spec.text_encoder),
        text_encoder_2=build_text_encoder(spec.text_encoder_2),
        tokenizer=tokenizers[0].build(),
        tokenizer_2=tokenizers[1].build(),
        unet=build_unet(spec.unet),
        scheduler=EulerDiscreteScheduler.from_config(spec.schedule.to_config()),
    )
    pipeline.save_pretrained(folder)
    for tokenizer, name in zip(tokenizers, ("tokenizer", "tokenizer_2"), strict=True):
        tokenizer.write(folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """vega-mini's shape at a third of its width and 64 px."""
    spec = preset("vega-mini")
    unet = spec.unet.model_copy(update={"block_out_channels": (16, 32, 48), "sample_size": 8, "norm_num_groups": 8})
    generation = spec.generation.model_copy(update={"width": 64, "height": 64})
    return spec.model_copy(update={"unet": unet, "generation": generation})


@pytest.fixture(scope="session")
def tiny_folder(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `tiny_spec`."""
    return write_folder(tiny_spec, tmp_path_factory.mktemp("models") / "tiny")
