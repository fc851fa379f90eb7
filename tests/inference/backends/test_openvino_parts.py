"""Decoders and text encoders in OpenVINO answer as torch does, from what is kept, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import tiny
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.open import Opening, PartName, Weights, open_decoder, open_text_encoder
from vega_diffusion.inference.backends.protocol import InUse, LatentDecoder, TextEncoder
from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.text import build_text_encoder

pytest.importorskip("openvino")


def settled(module: Any) -> Any:
    return module.eval().requires_grad_(False)


def test_the_decoder_equals_torch_for_any_size_and_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"block_out_channels": (8, 16), "layers_per_block": 1}
    vae = settled(build_autoencoder(tiny().autoencoder.model_copy(update=small)))
    opening = Opening(home=tmp_path)
    decoder: LatentDecoder = open_decoder("fp32", Weights("vae", lambda: vae), opening)
    for rows, height, width in ((1, 8, 8), (2, 4, 6)):
        latents = torch.randn(rows, vae.config.latent_channels, height, width)
        expected = vae.decode(latents, return_dict=False)[0]
        torch.testing.assert_close(decoder.decode(latents), expected, atol=1e-5, rtol=1e-4)
    assert decoder.in_use == InUse("openvino", "fp32", True, ("CPU",))
    again = open_decoder("fp32", Weights("vae", None), opening)
    assert torch.equal(again.decode(latents), decoder.decode(latents))
    with pytest.raises(InvalidValue, match="precision: 'int8' is not allowed; allowed: fp32, bf16, int8-weights"):
        open_decoder("int8", Weights("vae", lambda: vae), opening)


@pytest.mark.parametrize("which", ["text-encoder", pytest.param("text-encoder-2", marks=pytest.mark.slow)])
def test_text_encoders_equal_torch(tmp_path: Path, which: PartName) -> None:
    torch.manual_seed(0)
    spec = tiny().text_encoder if which == "text-encoder" else tiny().text_encoder_2
    assert spec is not None
    encoder = settled(build_text_encoder(spec.model_copy(update={"num_hidden_layers": 2})))
    opened: TextEncoder = open_text_encoder("fp32", Weights("text", lambda: encoder), Opening(home=tmp_path), which)
    ids = torch.randint(0, spec.vocab_size - 2, (3, 77))
    for row, end in enumerate((5, 20, 76)):
        ids[row, end:] = spec.eos_token_id
    hidden, pooled = opened.encode(ids)
    with torch.inference_mode():
        output = encoder(ids, output_hidden_states=True)
    torch.testing.assert_close(hidden, output.hidden_states[-2], atol=1e-5, rtol=1e-4)
    if spec.with_projection:
        assert pooled is not None
        torch.testing.assert_close(pooled, output[0], atol=1e-5, rtol=1e-4)
    else:
        assert pooled is None


@pytest.mark.slow
def test_eight_bit_weights_of_both_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = settled(build_autoencoder(tiny().autoencoder))
    encoder = settled(build_text_encoder(tiny().text_encoder))
    opening = replace(Opening(), home=tmp_path)
    latents, ids = torch.randn(1, vae.config.latent_channels, 8, 8), torch.randint(0, 4000, (1, 77))
    decoded = open_decoder("int8-weights", Weights("vae", lambda: vae), opening).decode(latents)
    hidden, _ = open_text_encoder("int8-weights", Weights("text", lambda: encoder), opening).encode(ids)
    for answer, expected in (
        (decoded, vae.decode(latents, return_dict=False)[0]),
        (hidden, encoder(ids, output_hidden_states=True).hidden_states[-2]),
    ):
        assert 0 < float((answer - expected).norm() / expected.norm()) < 0.05
