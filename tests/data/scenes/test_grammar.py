"""Scenes at random: a pure function of position, composed so that what is said can be seen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vega_diffusion.data.scenes.grammar import DEFAULT_KINDS, SceneMix, sample_scene
from vega_diffusion.data.scenes.scene import (
    BACKGROUNDS,
    CANVAS_SIZE,
    HUES,
    LIGHT_BACKGROUNDS,
    LINE_STYLE,
    MAX_CROP,
    PLACES,
    STYLES,
    Scene,
)
from vega_diffusion.data.scenes.sprite_facts import _lab, load_sprite_facts
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import InvalidValue, VegaError

SCENES = [sample_scene(7, position) for position in range(6000)]


def of_kind(kind: str) -> list[Scene]:
    found = [scene for scene in SCENES if scene.caption_kind == kind]
    assert len(found) >= 100
    return found


def test_a_scene_depends_on_seed_and_position_only() -> None:
    backwards = [sample_scene(7, position) for position in reversed(range(300))]
    assert backwards[::-1] == SCENES[:300]
    assert SCENES[:300] != [sample_scene(8, position) for position in range(300)]
    assert len(set(SCENES)) >= 0.99 * len(SCENES)


def test_json_keeps_a_scene() -> None:
    for scene in SCENES[:200]:
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_kinds_come_as_often_as_the_mix_says() -> None:
    counts = Counter(scene.caption_kind for scene in SCENES)
    for kind, weight in DEFAULT_KINDS:
        assert counts[kind] == pytest.approx(weight * len(SCENES), rel=0.25), kind


def test_every_noun_style_and_background_comes() -> None:
    assert {placed.noun for scene in SCENES for placed in scene.objects} == set(load_vocabulary().names)
    assert {scene.style for scene in SCENES} == set(STYLES)
    assert {scene.background for scene in SCENES} == {*BACKGROUNDS, *PLACES}
    others = [scene for scene in SCENES if scene.style != LINE_STYLE]
    assert len(others) < len(SCENES)
    assert sum(scene.style_in_caption for scene in others) / len(others) == pytest.approx(0.5, abs=0.03)


def test_line_art_is_always_named_unless_the_mix_says_otherwise_and_words_move_no_pixel() -> None:
    assert all(scene.style_in_caption for scene in SCENES if scene.style == LINE_STYLE)
    half = [sample_scene(7, position, mix=SceneMix(line_word_rate=0.5)) for position in range(2000)]
    lines = [scene for scene in half if scene.style == LINE_STYLE]
    assert sum(scene.style_in_caption for scene in lines) / len(lines) == pytest.approx(0.5, abs=0.1)
    assert [replace(scene, style_in_caption=False) for scene in half] == [
        replace(scene, style_in_caption=False) for scene in SCENES[:2000]
    ]


def test_boxes_are_square_inside_the_canvas_and_apart() -> None:
    for scene in SCENES:
        height, width = scene.canvas_size
        for number, placed in enumerate(scene.objects):
            x0, y0, x1, y1 = placed.box
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            assert x1 - x0 == y1 - y0 >= 32
            for other in scene.objects[:number]:
                a0, b0, a1, b1 = other.box
                assert x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0, scene


def test_relations_hold_by_a_margin() -> None:
    for scene in of_kind("relation"):
        (x, y), (u, v) = (placed.centre for placed in scene.objects)
        match scene.relation:
            case "left of":
                assert u - x >= 40 > abs(y - v)
            case "right of":
                assert x - u >= 40 > abs(y - v)
            case "above":
                assert v - y >= 40 > abs(x - u)
            case "below":
                assert y - v >= 40 > abs(x - u)
            case "next to":
                assert abs(x - u) >= 40 > abs(y - v)
            case other:
                pytest.fail(f"relation {other}")


def test_counts_are_boxes_of_one_noun_and_size() -> None:
    for scene in of_kind("count"):
        assert len(scene.objects) == scene.count
        assert len({placed.noun for placed in scene.objects}) == 1
        assert len({placed.box[2] - placed.box[0] for placed in scene.objects}) == 1
        assert len({placed.colour for placed in scene.objects}) == 1
    assert Counter(scene.count for scene in of_kind("count")).keys() == {1, 2, 3, 4}


def test_small_and_large_differ_from_each_other_and_from_all_others() -> None:
    def sides(scenes: list[Scene]) -> list[int]:
        return [placed.box[2] - placed.box[0] for scene in scenes for placed in scene.objects]

    small = sides([scene for scene in of_kind("size") if scene.size_word == "small"])
    large = sides([scene for scene in of_kind("size") if scene.size_word == "large"])
    assert max(small) < min(sides(of_kind("single"))) <= max(sides(of_kind("single"))) < min(large)


def test_colours_are_those_that_the_sprites_can_take_and_two_objects_differ() -> None:
    facts = load_sprite_facts()
    for scene in of_kind("colour") + of_kind("binding"):
        for placed in scene.objects:
            slug = placed.variant or load_vocabulary().noun(placed.noun).slug
            assert placed.colour in facts.colours(scene.style, slug)
    assert all(len({placed.colour for placed in scene.objects}) == 2 for scene in of_kind("binding"))


def test_everything_stands_out_from_its_background() -> None:
    facts = load_sprite_facts()
    for scene in SCENES:
        for placed in scene.objects:
            slug = placed.variant or load_vocabulary().noun(placed.noun).slug
            assert facts.contrast_ok(scene.style, slug, placed.colour, scene.background)
        if scene.style == LINE_STYLE:
            assert scene.background in LIGHT_BACKGROUNDS


def test_lettering_is_never_mirrored_and_other_things_are() -> None:
    nouns = load_vocabulary()
    flipped = {placed.noun for scene in SCENES for placed in scene.objects if placed.flipped}
    assert len(flipped) >= 150
    assert not any(nouns.noun(name).lettering for name in flipped)


def test_every_style_draws_what_it_is_asked_for() -> None:
    for scene in SCENES:
        for placed in scene.objects:
            noun = load_vocabulary().noun(placed.noun)
            assert (placed.variant or noun.slug) in noun.drawings(scene.style)


def test_sizes_and_crops_are_real() -> None:
    plain = sum(scene.original_size == (128, 128) for scene in SCENES) / len(SCENES)
    assert 0.75 <= plain <= 0.9
    assert {min(scene.original_size) for scene in SCENES} >= {48, 64, 96, 128, 256}
    for scene in SCENES:
        height, width = scene.canvas_size
        top, left = scene.crop_top_left
        assert min(height, width) == CANVAS_SIZE
        assert max(height, width) <= CANVAS_SIZE + MAX_CROP
        assert 0 <= top <= height - CANVAS_SIZE
        assert 0 <= left <= width - CANVAS_SIZE
        assert scene.time_ids == (*scene.original_size, top, left, 128, 128)
        if len(scene.objects) > 1:
            assert scene.crop_top_left == (0, 0)
            assert scene.canvas_size == (128, 128)


def test_a_mix_limits_nouns_styles_and_kinds() -> None:
    mix = SceneMix(kinds=(("relation", 1.0),), nouns=("cat", "pizza", "car"), styles=("noto",), place_rate=0.0)
    for position in range(100):
        scene = sample_scene(1, position, mix=mix)
        assert scene.caption_kind == "relation"
        assert scene.style == "noto"
        assert scene.background in BACKGROUNDS
        assert {placed.noun for placed in scene.objects} <= {"cat", "pizza", "car"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": (("nonsense", 1.0),)}, "mix.kinds"),
        ({"styles": ("baroque",)}, "mix.styles"),
        ({"styles": ()}, "mix.styles"),
        ({"nouns": ("wug",)}, "noun: 'wug'"),
        ({"flip_rate": 1.5}, "mix.flip_rate: 1.5"),
    ],
)
def test_bad_mixes_name_the_field(values: dict, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        SceneMix(**values)


def test_bad_positions_and_splits_are_errors() -> None:
    with pytest.raises(InvalidValue, match="position: -1"):
        sample_scene(0, -1)
    with pytest.raises(InvalidValue, match="split: 'dve'"):
        sample_scene(0, 0, split="dve")
    plain_counts = SceneMix(kinds=(("background", 1.0),))
    with pytest.raises(VegaError, match="no scene of kinds background found for split 'test'"):
        sample_scene(0, 0, split="test", mix=plain_counts)


def test_background_colours_are_well_separated() -> None:
    lab = _lab(np.array(list(BACKGROUNDS.values())) / 255)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(len(lab))
    assert distance.min() >= 30
    assert len(HUES) == 7


def in_order(scene: Scene) -> bool:
    first, second = scene.objects
    beside = abs(first.centre[0] - second.centre[0]) >= abs(first.centre[1] - second.centre[1])
    return first.centre[0] < second.centre[0] if beside else first.centre[1] < second.centre[1]


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_pairs_without_a_word_for_their_order_stand_in_reading_order_as_often_as_the_mix_says(rate: float) -> None:
    mix = SceneMix(kinds=(("two", 1.0), ("binding", 1.0), ("relation", 1.0)), reading_order_rate=rate)
    scenes = [sample_scene(3, position, mix=mix) for position in range(900)]
    free = [scene for scene in scenes if scene.relation in (None, "next to")]
    assert len(free) >= 400
    share = sum(in_order(scene) for scene in free) / len(free)
    assert share == pytest.approx(rate + (1 - rate) / 2, abs=0.05)
    told = [scene for scene in scenes if scene.relation in ("right of", "below")]
    assert len(told) >= 50
    assert not any(in_order(scene) for scene in told)
