"""Decoders and text encoders in OpenVINO answer as torch does, from what is kept, too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import tiny
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.calibration import decoder_samples
from vega_diffusion.inference.backends.open import (
    Opening,
    PartName,
    Weights,
    is_calibrated,
    is_kept,
    open_decoder,
    open_text_encoder,
)
from vega_diffusion.inference.backends.protocol import InUse, LatentDecoder, TextEncoder
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
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
        open_decoder("int8", Weights("vae", lambda: vae), opening, "tiny-vae-decoder")


def test_a_decoder_in_8_bits_is_made_from_latents_once(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    small = {"block_out_channels": (8, 16), "layers_per_block": 1}
    vae = settled(build_autoencoder(tiny().autoencoder.model_copy(update=small)))
    latents = [torch.randn(1, vae.config.latent_channels, 8, 8) for _ in range(3)]
    lines: list[str] = []
    rule = QuantisationRule(num_samples=2, num_probes=1, max_error=1e-4, max_kept_work=0.3)
    opening = Opening(home=tmp_path, decoder_rule=rule, say=lines.append)
    without = open_decoder("int8", Weights("vae", lambda: vae), opening)
    assert "vae-decoder: openvino in int8: there are no calibration questions; going on in bf16" in lines
    assert without.in_use.precision in ("bf16", "fp32")
    assert not is_kept("vae-decoder", "int8", "vae", opening)
    decoder = open_decoder("int8", Weights("vae", lambda: vae), opening, latents=lambda: latents[:2])
    expected = vae.decode(latents[2], return_dict=False)[0]
    assert 1e-4 < float((decoder.decode(latents[2]) - expected).norm() / expected.norm()) < 0.15  # random, two samples
    assert decoder.in_use == InUse("openvino", "int8", True, ("CPU",))
    (report,) = tmp_path.glob("vae-decoder-*/decoder.json")
    told = json.loads(report.read_text())
    assert told["kept_in_higher_precision"], "no error is that small: what fits in a third of the work stays out"
    assert 0 < sum(group["work"] for group in told["kept_in_higher_precision"]) <= 0.3
    again = open_decoder("int8", Weights("vae", None), opening)
    assert torch.equal(again.decode(latents[2]), decoder.decode(latents[2]))
    assert is_kept("vae-decoder", "int8", "vae", opening)
    assert not is_calibrated("vae", opening), "there is no U-Net"


def test_of_large_latents_the_middle_is_calibrated_on() -> None:
    latents = torch.arange(40 * 48, dtype=torch.float32).reshape(1, 1, 40, 48)
    small = torch.zeros(1, 4, 8, 40)
    samples: list[Any] = decoder_samples([latents, small])
    assert torch.equal(torch.from_numpy(samples[0]["latents"]), latents[..., 4:36, 8:40])
    assert samples[1]["latents"].shape == (1, 4, 8, 32)


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
