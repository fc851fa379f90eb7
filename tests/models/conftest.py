"""A tiny model of vega-mini's topology with random weights, and its folder in the published layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.export import ModelParts, save_model
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.tokenizer import byte_tokenizer
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import VEGA_MINI


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """vega-mini, narrower: fast, yet with every kind of layer."""
    unet = {"block_out_channels": (8, 16, 24), "norm_num_groups": 8, "sample_size": 8}
    vae = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 8, "scaling_factor": 0.7, "sample_size": 64}
    size = {"width": 64, "height": 64}
    assert VEGA_MINI.text_encoder_2 is not None
    changes = {
        "name": "tiny",
        "unet": VEGA_MINI.unet.model_copy(update=unet),
        "autoencoder": VEGA_MINI.autoencoder.model_copy(update=vae),
        "text_encoder": VEGA_MINI.text_encoder.model_copy(update={"num_hidden_layers": 2, "vocab_size": 520}),
        "text_encoder_2": VEGA_MINI.text_encoder_2.model_copy(update={"num_hidden_layers": 2, "vocab_size": 520}),
        "generation": VEGA_MINI.generation.model_copy(update=size),
    }
    for encoder in ("text_encoder", "text_encoder_2"):
        changes[encoder] = changes[encoder].model_copy(update={"bos_token_id": 518, "eos_token_id": 519})
    # Through JSON, so that validators judge the result.
    return ModelSpec.from_json(VEGA_MINI.model_copy(update=changes).to_json())


@pytest.fixture(scope="session")
def tiny_parts(tiny_spec: ModelSpec) -> ModelParts:
    torch.manual_seed(0)
    assert tiny_spec.text_encoder_2 is not None
    return ModelParts(
        unet=build_unet(tiny_spec.unet).eval(),
        autoencoder=build_autoencoder(tiny_spec.autoencoder).eval(),
        text_encoder=build_text_encoder(tiny_spec.text_encoder),
        text_encoder_2=build_text_encoder(tiny_spec.text_encoder_2),
        tokenizer=byte_tokenizer(520),
        tokenizer_2=byte_tokenizer(520, "!"),
    )


@pytest.fixture(scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory, tiny_spec: ModelSpec, tiny_parts: ModelParts) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, tiny_spec, tiny_parts, ("fp32", "fp16"), {"weights": "random"}, "# tiny\n")
    return folder


@pytest.fixture
def tiny_folder(_saved: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(_saved, tmp_path / "tiny"))
