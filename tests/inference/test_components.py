"""Where and how a model runs: device, dtype, memory; overflow never ends in a silent black picture."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from vega_diffusion import Engine, GenerateRequest
from vega_diffusion.errors import InvalidValue, Unavailable, UnreadableModel, VegaError
from vega_diffusion.inference import components
from vega_diffusion.inference.components import Components, choose_device, choose_dtype, choose_low_memory
from vega_diffusion.inference.pictures import decode_latents

REQUEST = GenerateRequest(prompt="a cat", num_steps=2, guidance_scale=3.0, seed=1)


def draw(engine: Engine, **changes: Any) -> numpy.ndarray:
    (drawn,) = engine.generate(REQUEST.model_copy(update=changes))
    return numpy.asarray(drawn.image).astype(int)


def test_automatic_choices() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu, 10_000_000) == torch.float32
    assert choose_dtype("auto", cpu, 10**15) == torch.bfloat16, "float32 would not fit"
    assert choose_dtype("auto", cuda, 745_225_604) == torch.float16
    assert choose_dtype("float16", cpu, 1) == torch.float16
    assert choose_low_memory(None, 2**60, cpu)
    assert not choose_low_memory(None, 1000, cpu)
    assert not choose_low_memory(False, 2**60, cpu)
    assert choose_device("cpu") == cpu
    with pytest.raises(InvalidValue, match="device.*toaster.*cuda"):
        choose_device("toaster")
    with pytest.raises(InvalidValue, match="dtype.*int3.*bfloat16"):
        choose_dtype("int3", cpu, 1)


@pytest.mark.parametrize(("kernels", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_large_models_take_bfloat16_where_torch_has_kernels_for_it(
    kernels: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "has_bfloat16_kernels", lambda: kernels)
    monkeypatch.setattr(components, "free_memory", lambda device: 2**40)
    assert choose_dtype("auto", torch.device("cpu"), 745_225_604) == dtype


def test_kernels_of_bfloat16_are_those_of_processors_with_instructions_for_it() -> None:
    """AVX-512 alone is not enough: its kernels convert, and are slower than those of float32."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if "avx2" in flags:
        own = {"avx512_bf16", "amx_bf16"} if "avx512f" in flags else {"avx_ne_convert"}
        assert components.has_bfloat16_kernels() == bool(own & set(flags))


@pytest.mark.skipif(torch.xpu.is_available(), reason="the machine has one")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(Unavailable, match="device.*xpu.*cpu"):
        choose_device("xpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_part_runs_in_the_dtype_asked_for(tiny_folder: Path, dtype: str) -> None:
    components = Components.open(str(tiny_folder), "cpu", dtype, None)
    wanted = getattr(torch, dtype)
    assert components.unet().dtype == wanted
    assert [encoder.dtype for encoder in components.text_stack().encoders] == [wanted, wanted]
    # The folder's config sets force_upcast, as SDXL's does.
    assert components.vae().dtype == (torch.float32 if dtype == "float16" else wanted)


def test_float16_equals_diffusers(tiny_folder: Path) -> None:
    engine = Engine.load(str(tiny_folder), device="cpu", dtype="float16")
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder, dtype=torch.float16)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a cat", num_inference_steps=2, guidance_scale=3.0, generator=torch.Generator().manual_seed(1)
    ).images[0]
    assert abs(draw(engine) - numpy.asarray(theirs).astype(int)).max() <= 1


def test_low_memory_draws_the_same_and_keeps_little(tiny_folder: Path) -> None:
    frugal = Engine.load(str(tiny_folder), device="cpu", low_memory=True)
    usual = Engine.load(str(tiny_folder), device="cpu", low_memory=False)
    assert numpy.array_equal(draw(frugal), draw(usual))
    assert not {"text", "unet"} & set(frugal.components._parts)
    assert {"text", "unet"} <= set(usual.components._parts)
    assert numpy.array_equal(draw(frugal, seed=2), draw(usual, seed=2)), "parts come back when needed"


def test_threads_share_an_engine(tiny_folder: Path) -> None:
    engine = Engine.load(str(tiny_folder), device="cpu")
    alone = [draw(engine, seed=seed, sampler="dpmpp_2m") for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: draw(engine, seed=seed, sampler="dpmpp_2m"), range(4)))
    for one, other in zip(alone, together, strict=True):
        assert abs(one - other).max() <= 1


def test_an_autoencoder_that_overflows_in_half_precision_is_run_again_in_float32(tiny_folder: Path) -> None:
    vae: Any = Components.open(str(tiny_folder), "cpu", "float32", None).vae()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(2e5)
    wide, said = decode_latents(vae, latents)
    assert said == ()
    half = vae.to(torch.float16)
    image, warnings = decode_latents(half, latents.half())
    assert len(warnings) == 1
    assert "overflowed in float16" in warnings[0]
    assert half.dtype == torch.float16, "the caller's autoencoder is left as it was"
    assert image.dtype == torch.float32
    assert bool(torch.isfinite(image).all())
    assert image.shape == wide.shape


def test_numbers_that_are_not_finite_are_an_error_not_a_black_picture(tiny_folder: Path) -> None:
    engine = Engine.load(str(tiny_folder), device="cpu", dtype="bfloat16")
    unet: Any = engine.components.unet()
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(VegaError, match="latents.*bfloat16.*float32") as error:
        draw(engine)
    assert "\n" not in str(error.value)
    vae: Any = engine.components.vae()
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(VegaError, match="autoencoder.*not finite"):
        decode_latents(vae, torch.zeros(1, 4, 8, 8))


def test_a_truncated_weight_file_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UnreadableModel, match="truncated") as error:
        draw(Engine.load(str(folder), device="cpu"))
    assert "\n" not in str(error.value)
    assert str(weights) in str(error.value)
