"""The batched renderer against the simple one, and the properties both must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vega_diffusion.data.scenes.atlas import SpriteAtlas, dominant_hue_share, level_for, recolour
from vega_diffusion.data.scenes.places import place_picture
from vega_diffusion.data.scenes.reference import render_reference
from vega_diffusion.data.scenes.renderer import SceneRenderer, pure_hue, soften
from vega_diffusion.data.scenes.scene import BACKGROUNDS, PLACES, STYLES, PlacedObject, Scene
from vega_diffusion.errors import MissingFile, VegaError

CAT = PlacedObject("cat", (20, 30, 90, 100))


@pytest.fixture(scope="module")
def atlas() -> SpriteAtlas:
    return SpriteAtlas.load(slugs={"cat", "pizza", "red-apple", "automobile"})


def as_bytes(pictures: torch.Tensor) -> np.ndarray:
    return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def scenes_of_all_kinds() -> list[Scene]:
    pizza = PlacedObject("pizza", (-10, 60, 54, 124), flipped=True)
    car = PlacedObject("car", (70, 8, 90, 28), colour="blue")
    apple = PlacedObject("apple", (60, 60, 158, 158), colour="purple", flipped=True)
    return [
        Scene((CAT,), "white", "noto"),
        Scene((CAT, pizza, car), "beach", "fluent3d", original_size=(128, 160), crop_top_left=(0, 21)),
        Scene((pizza, apple), "night", "twemoji", original_size=(72, 72)),
        Scene((CAT, car, apple, pizza), "orange", "fluentflat", original_size=(160, 128), crop_top_left=(9, 0)),
        Scene((), "snow", "notov1"),
        Scene((PlacedObject("car", (0, 0, 128, 128)),), "gray", "fluentline", original_size=(96, 96)),
    ]


def test_batched_renderer_matches_the_reference_within_one_level(atlas: SpriteAtlas) -> None:
    scenes = scenes_of_all_kinds()
    drawn = as_bytes(SceneRenderer(atlas).render(scenes))
    for number, scene in enumerate(scenes):
        difference = np.abs(drawn[number].astype(int) - render_reference(scene, atlas))
        assert difference.max() <= 1, f"scene {number}: {difference.max()} levels"


def test_a_scene_does_not_depend_on_its_batch(atlas: SpriteAtlas) -> None:
    scenes = scenes_of_all_kinds()
    renderer = SceneRenderer(atlas)
    together = renderer.render(scenes)
    alone = torch.cat([renderer.render([scene]) for scene in scenes])
    assert torch.equal(together, alone)


def test_values_are_the_levels_of_an_8_bit_picture(atlas: SpriteAtlas) -> None:
    levels = (SceneRenderer(atlas).render(scenes_of_all_kinds()) + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.min() >= 0
    assert levels.max() <= 255


@pytest.mark.parametrize("background", [*BACKGROUNDS, *PLACES])
def test_outside_the_object_there_is_only_background(atlas: SpriteAtlas, background: str) -> None:
    with_cat, without = SceneRenderer(atlas).render([Scene((CAT,), background, "noto"), Scene((), background, "noto")])
    outside = torch.ones(128, 128, dtype=torch.bool)
    x0, y0, x1, y1 = CAT.box
    outside[y0 - 2 : y1 + 2, x0 - 2 : x1 + 2] = False
    assert torch.equal(with_cat[:, outside], without[:, outside])
    assert (with_cat != without)[:, ~outside].float().mean() > 0.3


def test_flipping_mirrors_the_object_in_its_box(atlas: SpriteAtlas) -> None:
    box = (32, 32, 96, 96)
    plain, flipped = SceneRenderer(atlas).render(
        [Scene((PlacedObject("car", box, flipped=flag),), "white", "noto") for flag in (False, True)]
    )
    assert torch.allclose(plain.flip(-1), flipped, atol=1.01 / 127.5)
    assert not torch.equal(plain, flipped)


def test_cropping_moves_the_window(atlas: SpriteAtlas) -> None:
    moved = PlacedObject("cat", (CAT.box[0] - 5, CAT.box[1] - 7, CAT.box[2] - 5, CAT.box[3] - 7))
    cropped, shifted = SceneRenderer(atlas).render(
        [Scene((CAT,), "teal", "noto", crop_top_left=(7, 5)), Scene((moved,), "teal", "noto")]
    )
    assert torch.equal(cropped, shifted)


def test_recolouring_gives_the_hue_and_keeps_value_and_alpha() -> None:
    sprite = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    sprite[:3] *= sprite[3:]
    red = recolour(sprite, torch.tensor(pure_hue("red")))
    assert torch.equal(red[3], sprite[3])
    assert torch.allclose(red[:3].amax(0), sprite[:3].amax(0))
    assert torch.allclose(red[:3].amin(0), sprite[:3].amin(0), atol=1e-6)
    assert torch.equal(red[1], red[2])  # green = blue <=> hue 0


def test_softening_a_flat_picture_changes_nothing_and_blurs_an_edge() -> None:
    flat = torch.full((3, 128, 128), 0.25)
    assert torch.allclose(soften(flat, 48), flat, atol=1e-6)
    edge = torch.zeros(3, 128, 128)
    edge[:, :, 64:] = 1
    assert soften(edge, 48)[0, 64].diff().abs().max() < 0.5


def test_pyramid_levels_are_means(atlas: SpriteAtlas) -> None:
    for above, below in ((128, 64), (64, 32), (32, 16)):
        means = torch.nn.functional.avg_pool2d(atlas.pyramid[above].float(), 2)
        assert (atlas.pyramid[below].float() - means).abs().max() <= 0.5
    assert [level_for(side) for side in (10, 16, 17, 64, 65, 128, 150)] == [16, 16, 32, 64, 128, 128, 128]


def test_every_premultiplied_colour_is_at_most_its_alpha(atlas: SpriteAtlas) -> None:
    assert (atlas.sprites[:, :3] <= atlas.sprites[:, 3:]).all()


def test_one_coloured_things_are_told_from_motley_ones(atlas: SpriteAtlas) -> None:
    apple = dominant_hue_share(atlas.sprites[atlas.row("fluentflat", "red-apple")].numpy())
    assert apple[0] > 0.5
    line = dominant_hue_share(atlas.sprites[atlas.row("fluentline", "cat")].numpy())
    assert line[0] < 0.05


def test_places_are_deterministic_and_read_only() -> None:
    for name in PLACES:
        picture = place_picture(name)
        assert picture.shape == (3, 160, 160)
        assert picture.min() >= 0
        assert picture.max() <= 1
        with pytest.raises(ValueError, match="read-only"):
            picture[0, 0, 0] = 0.0


def test_the_sample_draws_every_training_style() -> None:
    sample = SpriteAtlas.load(slugs={"cat"})
    assert {style for style, _ in sample.index} == set(STYLES)


def test_missing_sheets_styles_and_sprites_are_named(tmp_path, atlas: SpriteAtlas) -> None:
    with pytest.raises(MissingFile, match="vega data icons"):
        SpriteAtlas.load(tmp_path)
    with pytest.raises(VegaError, match="emojione"):
        SpriteAtlas.load(styles=["emojione"])
    with pytest.raises(VegaError, match="'dog' is not drawn in style 'noto'"):
        atlas.row("noto", "dog")
