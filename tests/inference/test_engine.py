"""The engine equals diffusers' SDXL pipelines, and its own rules hold: independence, cancellation, previews."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from vega_diffusion import Engine, GenerateRequest
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.denoise import Cancelled
from vega_diffusion.inference.engine import Progress
from vega_diffusion.inference.samplers import make_scheduler
from vega_diffusion.specs.request import SAMPLERS

PROMPT, NEGATIVE = "a cat next to a slice of (pizza:1.3)", "blurry, (low quality)"
REQUEST = GenerateRequest(prompt=PROMPT, num_steps=3, guidance_scale=4.0, seed=11)


def pixels(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image).astype(int)


def difference(first: Image.Image, second: Image.Image) -> int:
    return int(abs(pixels(first) - pixels(second)).max())


def generator(seed: int = 11) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def reference(
    engine: Engine, pipeline_class: type = StableDiffusionXLPipeline, sampler: str = "euler"
) -> StableDiffusionXLPipeline:
    """Return diffusers' pipeline on the folder of an engine, in the engine's dtype."""
    pipeline = pipeline_class.from_pretrained(engine.components.folder, torch_dtype=engine.components.dtype)
    pipeline.scheduler = make_scheduler(sampler, engine.components.scheduler_config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def engine(tiny_folder: Path) -> Engine:
    return Engine.load(str(tiny_folder), device="cpu")


@pytest.fixture(params=["float32", "bfloat16"])
def either_engine(request: pytest.FixtureRequest, tiny_folder: Path) -> Engine:
    engine = Engine.load(str(tiny_folder), device="cpu", dtype=request.param)
    assert engine.components.unet().dtype == getattr(torch, request.param)
    return engine


@pytest.mark.parametrize(
    ("negative_prompt", "guidance_scale"), [(None, 4.0), (NEGATIVE, 4.0), ("", 4.0), (None, 1.0)]
)
def test_text_to_image_equals_diffusers(
    either_engine: Engine, negative_prompt: str | None, guidance_scale: float
) -> None:
    request = GenerateRequest(
        prompt=PROMPT, negative_prompt=negative_prompt, guidance_scale=guidance_scale, num_steps=3, seed=11
    )
    (ours,) = either_engine.generate(request)
    theirs = reference(either_engine)(
        PROMPT,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        num_inference_steps=3,
        generator=generator(),
    ).images[0]
    assert difference(ours.image, theirs) == 0
    assert pixels(ours.image).std() > 1, "a constant picture proves nothing"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_equals_diffusers(engine: Engine, sampler: str) -> None:
    (ours,) = engine.generate(REQUEST.model_copy(update={"sampler": sampler, "num_steps": 4}))
    theirs = reference(engine, sampler=sampler)(
        PROMPT, guidance_scale=4.0, num_inference_steps=4, generator=generator()
    ).images[0]
    assert difference(ours.image, theirs) == 0
