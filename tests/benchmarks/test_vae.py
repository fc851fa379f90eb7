"""The case `vae` at tiny size, and structural similarity by its closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from vega_diffusion.benchmarks import openvino_decoders
from vega_diffusion.benchmarks import vae as case
from vega_diffusion.benchmarks.protocol import Timing
from vega_diffusion.benchmarks.similarity import C1, C2, ssim
from vega_diffusion.data.scenes.atlas import sample_folder
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.models.autoencoder import build_autoencoder, build_tiny_autoencoder
from vega_diffusion.specs.architecture import AutoencoderSpec
from vega_diffusion.specs.tiny_autoencoder import TAESD, TinyAutoencoderSpec


def test_equal_pictures_are_alike_and_order_does_not_matter() -> None:
    first, second = torch.rand(2, 3, 24, 20) * 2 - 1, torch.rand(2, 3, 24, 20) * 2 - 1
    torch.testing.assert_close(ssim(first, first), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ssim(first, second), ssim(second, first))
    assert ssim(first, second).max() < 0.5
    torch.testing.assert_close(ssim(3 * first.sign(), first.sign()), torch.ones(2, dtype=torch.float64))


def test_flat_pictures_differ_in_luminance_alone() -> None:
    one, other = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), -0.25)
    expected = (2 * 0.5 * -0.25 + C1) / (0.5**2 + 0.25**2 + C1)
    assert ssim(one, other).item() == pytest.approx(expected)


def test_a_picture_and_its_negative_by_the_formula() -> None:
    # On a window of one value of x = a cos, the mean is near zero and covariance is minus the variance.
    grid = torch.arange(32) * math.pi
    picture = (0.5 * grid.cos()).expand(1, 3, 32, 32)
    variance = 0.25
    assert ssim(picture, -picture).item() == pytest.approx((-2 * variance + C2) / (2 * variance + C2), abs=0.01)


def test_work_of_a_decoder_is_counted_by_hand() -> None:
    tiny: Any = build_tiny_autoencoder(
        TinyAutoencoderSpec(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(0, 0),
            num_decoder_blocks=(0, 0),
        )
    )
    into, between, out = 16 * 16 * 4 * 8, 32 * 32 * 8 * 8, 32 * 32 * 8 * 3
    assert case.decoder_flops(tiny, 16) == 2 * 9 * (into + between + out)


def test_speedups_are_medians_of_pairs() -> None:
    slow, fast = ([Timing(seconds, seconds) for seconds in column] for column in ((2.0, 4.0, 9.0), (1.0, 1.0, 3.0)))
    timings = {"mini_full": slow, "mini_tiny": fast, "8px_full_float32": slow, "8px_tiny_float32": slow}
    assert case.speedups(timings, 8) == {"mini_tiny_speedup": 3.0, "8px_tiny_float32_speedup": 1.0}


@pytest.mark.slow
def test_the_case_at_tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Full-size networks take seconds to build; the case itself is the same at any size.
    once = [Timing(1.0, 1.0)]
    monkeypatch.setattr(case, "time_full_size", lambda *_: {"full_float32": once, "tiny_float32": once})
    monkeypatch.setattr(case, "DECODES", 1)
    monkeypatch.setattr(case, "DECODER_RULE", QuantisationRule(num_samples=2, num_probes=0))  # probes take seconds
    monkeypatch.setattr(case, "DTYPES", ("float32",))  # others take seconds a picture on some processors
    found = case.measure(num_scenes=2, num_random=1, icons=str(sample_folder()))
    by_name = {bar.what: bar for bar in found.bars}
    assert len(by_name) == 3 + openvino_decoders.is_installed()
    assert all(bar.measured > 20 for name, bar in by_name.items() if "pictures against" in name)
    assert all(bar.met for name, bar in by_name.items() if "pictures against" not in name), by_name
    assert found.summary["512px_tiny_float32_speedup"] == 1
    assert found.summary["mini_tiny_speedup"] > 0  # type: ignore[operator]  # how fast is told by result files
    assert float(found.summary["mean_full_psnr_db"]) > float(found.summary["mean_tiny_psnr_db"])
    assert len(found.samples["psnr_db"]) == 2
    if openvino_decoders.is_installed():
        # Levels of 8 bits themselves are some 59 dB off; equal pictures would be 100 dB or more.
        assert 30 < float(found.summary["mean_8_bit_psnr_db"]) < 70


def test_the_goal_of_speed_is_that_of_the_fastest_way_to_decode_in_full() -> None:
    ways = {
        "8px_full_float32_channels_last_speedup": 1.1,
        "8px_full_openvino_int8_speedup": 3.0,
        "8px_tiny_openvino_fp32_speedup": 30.0,
        "mini_tiny_speedup": 5.0,
    }
    bar, *rest = case.make_bars(ways, 9.0, {"psnr_db": 25.0}, 0, 8)
    assert (bar.measured, bar.what) == (
        3.0,
        "SDXL's decoder (random weights), 8 px: openvino int8 over diffusers' float32",
    )
    assert len(rest) == 3


@pytest.mark.slow
def test_openvino_decoders_take_part_in_the_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    small = AutoencoderSpec(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    shapes = {"full": lambda: build_autoencoder(small), "tiny": lambda: build_tiny_autoencoder(TAESD)}
    cases = case._openvino_cases(shapes, 64, 1)
    assert {"full_openvino_int8"} < cases.keys()
    assert len(cases) == 3
    assert cast("Tensor", cases["full_openvino_int8"](0)).shape == (1, 3, 16, 16)


def test_numbers_that_overflow_are_counted() -> None:
    assert case.multiplies_in("float32")
    vae: Any = case.decoders("vega-mini", "float32")[1]
    assert case._tried_in(vae, "float32", 2) == (0, 0)
    with torch.no_grad():
        vae.decoder.layers[0].bias.fill_(6e4)
    assert case._tried_in(vae, "float16", 1) == (0, 1)
    with torch.no_grad():
        vae.decoder.layers[0].bias.fill_(float("nan"))
    assert case._tried_in(vae, "float32", 1) == (1, 0)


def test_a_model_without_a_tiny_one_is_one_line(tiny_folder: Path) -> None:
    with pytest.raises(VegaError, match="no vae_tiny"):
        case.decoders(str(tiny_folder), "float32")
