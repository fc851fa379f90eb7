"""The engine equals diffusers' SDXL pipelines, and its own rules hold: independence, cancellation, previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.denoise import Cancelled
from vega_diffusion.inference.images import Progress
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


def reference(engine: Engine, pipeline_class: Any = StableDiffusionXLPipeline, sampler: str = "euler") -> Any:
    """Return diffusers' pipeline around the very networks of an engine, so that not one bit may differ."""
    components = engine.components
    text = components.text_stack()
    pipeline = pipeline_class(
        vae=components.vae(),
        text_encoder=text.encoders[0],
        text_encoder_2=text.encoders[1],
        tokenizer=text.tokenizers[0],
        tokenizer_2=text.tokenizers[1],
        unet=components.unet(),
        scheduler=make_scheduler(sampler, components.scheduler_config),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine.load(str(tiny_folder), device="cpu")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def either_engine(request: pytest.FixtureRequest, tiny_folder: Path) -> Engine:
    engine = Engine.load(str(tiny_folder), device="cpu", dtype=request.param)
    assert engine.components.unet().dtype == getattr(torch, request.param)
    return engine


@pytest.mark.parametrize(("negative_prompt", "guidance_scale"), [(None, 4.0), (NEGATIVE, 4.0), ("", 4.0), (None, 1.0)])
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


@pytest.mark.parametrize("shape", ["no-mid-block", "attention-mid-block", "asymmetric"])
def test_odd_shapes_equal_diffusers(model_folders: dict[str, Path], shape: str) -> None:
    engine = Engine.load(str(model_folders[shape]), device="cpu")
    (ours,) = engine.generate(REQUEST.model_copy(update={"width": 72, "height": 56}))
    theirs = reference(engine)(
        PROMPT, guidance_scale=4.0, num_inference_steps=3, generator=generator(), width=72, height=56
    ).images[0]
    assert ours.image.size == (72, 56)
    assert difference(ours.image, theirs) == 0


def test_weights_read_by_diffusers_itself_give_the_same_picture(engine: Engine) -> None:
    """Other memory alignment may move float32 sums in the last bit, hence one level of 255."""
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(engine.components.folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(PROMPT, guidance_scale=4.0, num_inference_steps=3, generator=generator()).images[0]
    (ours,) = engine.generate(REQUEST)
    assert difference(ours.image, theirs) <= 1


def test_size_and_crop_conditioning_equal_diffusers(engine: Engine) -> None:
    sizes = {"original_size": (40, 200), "crop_top_left": (16, 3)}
    (ours,) = engine.generate(REQUEST.model_copy(update=sizes))
    theirs = reference(engine)(
        PROMPT,
        guidance_scale=4.0,
        num_inference_steps=3,
        generator=generator(),
        original_size=(40, 200),
        crops_coords_top_left=(16, 3),
    ).images[0]
    (plain,) = engine.generate(REQUEST)
    assert difference(ours.image, theirs) == 0
    assert difference(ours.image, plain.image) > 0, "the conditioning has an effect"


def painting(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A smooth colourful picture."""
    rows, columns = numpy.mgrid[0 : size[1], 0 : size[0]]
    channels = [rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256]
    return Image.fromarray(numpy.stack(channels, axis=-1).astype("uint8"))


def half_mask(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """White (redraw) on the right half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_equals_diffusers(either_engine: Engine, sampler: str, strength: float) -> None:
    request = REQUEST.model_copy(update={"init_image": "it", "strength": strength, "sampler": sampler, "num_steps": 4})
    (ours,) = either_engine.generate(request, pictures={"it": painting()})
    theirs = reference(either_engine, StableDiffusionXLImg2ImgPipeline, sampler)(
        PROMPT, image=painting(), strength=strength, guidance_scale=4.0, num_inference_steps=4, generator=generator()
    ).images[0]
    assert difference(ours.image, theirs) == 0


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_equals_diffusers(either_engine: Engine, sampler: str, strength: float) -> None:
    request = REQUEST.model_copy(
        update={"init_image": "it", "mask": "m", "strength": strength, "sampler": sampler, "num_steps": 4}
    )
    (ours,) = either_engine.generate(request, pictures={"it": painting(), "m": half_mask()})
    theirs = reference(either_engine, StableDiffusionXLInpaintPipeline, sampler)(
        PROMPT,
        image=painting(),
        mask_image=half_mask(),
        width=64,
        height=64,
        strength=strength,
        guidance_scale=4.0,
        num_inference_steps=4,
        generator=generator(),
    ).images[0]
    assert difference(ours.image, theirs) == 0


def test_initial_picture_is_resized_when_a_size_is_given(engine: Engine) -> None:
    request = REQUEST.model_copy(update={"init_image": "it", "strength": 0.5, "width": 72, "height": 64})
    (drawn,) = engine.generate(request, pictures={"it": painting((90, 61))})
    assert drawn.image.size == (72, 64)
    with pytest.raises(InvalidValue, match="init_image.*multiples of 8.*width 88 and height 64"):
        engine.generate(request.model_copy(update={"width": None, "height": None}), pictures={"it": painting((90, 61))})


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0), ("float32", 1)])
@pytest.mark.parametrize("sampler", ["euler", "euler_a"])
def test_an_image_does_not_depend_on_its_batch(tiny_folder: Path, dtype: str, most: int, sampler: str) -> None:
    components = Components.open(str(tiny_folder), "cpu", dtype, None)
    together = Engine(components, max_batch=3)
    request = REQUEST.model_copy(update={"num_images": 4, "sampler": sampler})
    drawn = together.generate(request)
    assert components.unet().dtype == getattr(torch, dtype)
    for index, picture in enumerate(drawn):
        alone = Engine(components).generate(request.model_copy(update={"num_images": 1, "seed": 11 + index}))[0]
        assert picture.seed == alone.seed == 11 + index
        assert difference(picture.image, alone.image) <= most
    assert difference(drawn[0].image, drawn[1].image) > 1, "different seeds draw different pictures"


def test_one_image_a_pass_is_bit_equal_whatever_the_number(engine: Engine) -> None:
    drawn = engine.generate(REQUEST.model_copy(update={"num_images": 2}))
    (alone,) = engine.generate(REQUEST.model_copy(update={"seed": 12}))
    assert difference(drawn[1].image, alone.image) == 0


@pytest.mark.parametrize("stop_after", [0, 2])
def test_cancellation_within_one_step(engine: Engine, stop_after: int) -> None:
    steps: list[int] = []
    with pytest.raises(Cancelled, match=f"after {stop_after} of 3"):
        engine.generate(REQUEST, on_step=lambda p: steps.append(p.step), is_cancelled=lambda: len(steps) >= stop_after)
    assert steps == list(range(1, stop_after + 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_previews_show_the_picture_coming(engine: Engine, sampler: str) -> None:
    seen: list[tuple[int, int]] = []
    previews: list[Image.Image] = []

    def on_step(progress: Progress) -> None:
        seen.append((progress.step, progress.num_steps))
        previews.append(progress.preview())

    (drawn,) = engine.generate(REQUEST.model_copy(update={"sampler": sampler}), on_step=on_step)
    assert seen == [(step, len(seen)) for step in range(1, len(seen) + 1)]
    assert previews[0].size == drawn.image.size
    assert difference(previews[0], previews[-1]) > 0
    assert difference(previews[-1], drawn.image) <= 4
