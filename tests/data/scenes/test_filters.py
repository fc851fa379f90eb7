"""Filter styles: pure, in range, true to what they are called, and telling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.filters import COLOURLESS, FILTERS, apply_filter, blurred
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import PlacedObject, Scene


@pytest.fixture(scope="module")
def renderer() -> SceneRenderer:
    return SceneRenderer(SpriteAtlas.load(styles=["twemoji"], slugs=["dog"]))


def pictures(renderer: SceneRenderer, *backgrounds: str, colour: str | None = None) -> Tensor:
    placed = PlacedObject("dog", (20, 20, 100, 100), colour)
    return renderer.render([Scene((placed,), background, "twemoji") for background in backgrounds])


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_a_pure_function_of_each_picture(renderer: SceneRenderer, name: str) -> None:
    pixels = pictures(renderer, "white", "blue", "grass")
    before = pixels.clone()
    first = apply_filter(name, pixels)
    assert torch.equal(pixels, before)
    assert torch.equal(first, apply_filter(name, pixels))
    torch.testing.assert_close(apply_filter(name, pixels[1:2]), first[1:2], atol=1e-6, rtol=0)
    assert first.shape == pixels.shape
    assert first.min() >= -1
    assert first.max() <= 1
    assert first.isfinite().all()


def test_each_filter_looks_like_its_name(renderer: SceneRenderer) -> None:
    pixels = pictures(renderer, "white")
    neon, blueprint, sketch, pixel = (apply_filter(name, pixels)[0] for name in FILTERS)
    corner = (slice(None), slice(4, 12), slice(4, 12))
    assert neon[corner].max() < -0.6, "neon shines out of the dark"
    assert neon.max() > 0.5
    red, green, blue = blueprint[corner].mean((1, 2))
    assert blue > green > red, "a blueprint is blue"
    assert sketch[corner].min() > 0.7, "a sketch is drawn on paper"
    assert (sketch.amax(0) - sketch.amin(0)).max() < 0.15, "graphite has no colour"
    squares = pixel.unflatten(1, (32, 4)).unflatten(3, (32, 4))
    assert torch.equal(squares.amax((2, 4)), squares.amin((2, 4)))
    assert len(pixel.unique()) <= 7


def test_filters_differ_from_each_other_and_from_the_picture(renderer: SceneRenderer) -> None:
    pixels = pictures(renderer, "teal")
    drawn = [pixels, *(apply_filter(name, pixels) for name in FILTERS)]
    gaps = [float((a - b).abs().mean()) for number, a in enumerate(drawn) for b in drawn[:number]]
    assert len(gaps) == 10
    assert min(gaps) > 0.03


def test_colourless_filters_hide_the_background_and_pixel_keeps_it(renderer: SceneRenderer) -> None:
    pixels = pictures(renderer, "white", "yellow")
    corner = (slice(None), slice(None), slice(4, 12), slice(4, 12))
    for name in FILTERS:
        white, yellow = apply_filter(name, pixels)[corner]
        same = bool((white - yellow).abs().mean() < 0.02)
        assert same == (name in COLOURLESS)


def test_a_blur_keeps_flat_areas_and_the_mean_of_a_dot() -> None:
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(blurred(flat, 2.0), flat)
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 16] = 1
    soft = blurred(dot, 1.5)
    assert soft.sum().item() == pytest.approx(1, abs=1e-3)
    across = torch.arange(33) - 16
    assert (soft[0, 0].sum(0) * across**2).sum().item() == pytest.approx(1.5**2, rel=0.02)
