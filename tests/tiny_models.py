"""Tiny SDXL-shaped model folders with random weights, made once a session in the published layout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.export import ModelParts, save_model
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.tokenizer import byte_tokenizer
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import preset

# What `--set` turns a recipe into for a run of seconds.
TWO_STEPS = (
    "steps=2",
    "batch_size=2",
    "micro_batch_size=1",
    "save_every=2",
    "log_every=1",
    "lr_schedule.warmup_steps=1",
)


def write_folder(spec: ModelSpec, folder: Path) -> Path:
    """Write a model of that spec with random weights, fp32."""
    torch.manual_seed(0)
    assert spec.text_encoder_2 is not None
    size = spec.text_encoder.vocab_size
    parts = ModelParts(
        unet=build_unet(spec.unet),
        autoencoder=build_autoencoder(spec.autoencoder),
        text_encoder=build_text_encoder(spec.text_encoder),
        text_encoder_2=build_text_encoder(spec.text_encoder_2),
        tokenizer=byte_tokenizer(size),
        tokenizer_2=byte_tokenizer(size, "!"),
    )
    save_model(folder, spec, parts, precisions=("fp32",))
    return folder


def small_autoencoder(seed: int = 0, **config: object) -> Any:
    """An `AutoencoderKL` of 16 px pictures and 8 x 8 latents of two channels, with random weights."""
    torch.manual_seed(seed)
    build: Any = AutoencoderKL  # diffusers types tuples of any length as tuples of one
    return build(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        sample_size=16,
        **config,
    )


def tiny(**unet: object) -> ModelSpec:
    """vega-mini's shape at half its width and 64 px, with changes to its U-Net."""
    spec = preset("vega-mini")
    small: dict[str, object] = {"block_out_channels": (16, 32, 48), "sample_size": 8, "norm_num_groups": 8}
    defaults = spec.generation.model_copy(update={"width": 64, "height": 64})
    return spec.model_copy(
        update={"unet": spec.unet.model_copy(update=small | unet), "generation": defaults, "name": "tiny"}
    )


# name -> changes to the U-Net: what published compact models do, and what nobody has published
SHAPES: dict[str, dict[str, object]] = {
    "tiny": {},
    "no-mid-block": {"mid_block_type": None},
    "attention-mid-block": {"mid_block_type": "UNetMidBlock2DCrossAttn", "transformer_layers_per_block": (1, 2, 3)},
    "asymmetric": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": ((1, 1), (1, 2), (2, 1)),
        "reverse_transformer_layers_per_block": ((3, 1, 1), (2, 1, 1), (1, 1, 1)),
    },
}


@pytest.fixture(scope="session")
def speed_measured_once() -> Iterator[None]:
    """Let plans measure this machine's speed once a precision: it takes longer than what tests look at in a plan."""
    from vega_diffusion.training import planner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "matmul_speed", cache(planner.matmul_speed))
        yield


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of all `SHAPES`."""
    home = tmp_path_factory.mktemp("models")
    return {name: write_folder(tiny(**changes), home / name) for name, changes in SHAPES.items()}


@pytest.fixture(scope="session")
def tiny_folder(model_folders: dict[str, Path]) -> Path:
    """The folder of the plain shape."""
    return model_folders["tiny"]
