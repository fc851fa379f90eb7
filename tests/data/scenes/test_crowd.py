"""Crowded scenes: inside the picture, never hidden, of all counts, and a function of the position."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from vega_diffusion.data.scenes.crowd import LEAST_PX, MOST, crowd_scene
from vega_diffusion.data.scenes.scene import CANVAS_SIZE, STYLES
from vega_diffusion.data.scenes.sprite_facts import load_sprite_facts
from vega_diffusion.data.scenes.vocabulary import load_vocabulary

SCENES = [crowd_scene(1, position, STYLES) for position in range(300)]


def test_a_crowd_is_a_function_of_seed_and_position() -> None:
    assert [crowd_scene(1, position, STYLES) for position in range(0, 300, 30)] == SCENES[::30]
    assert crowd_scene(2, 0, STYLES) != SCENES[0] != SCENES[1]


def test_objects_are_inside_and_keep_their_centres_apart() -> None:
    overlaps = 0
    for scene in SCENES:
        for placed in scene.objects:
            x0, y0, x1, y1 = placed.box
            assert x1 - x0 == y1 - y0 >= LEAST_PX
            assert min(x0, y0) >= 0
            assert max(x1, y1) <= CANVAS_SIZE + 1
        for first, second in combinations(scene.objects, 2):
            side = (first.box[2] - first.box[0] + second.box[2] - second.box[0]) / 2
            gap = max(abs(a - b) for a, b in zip(first.centre, second.centre, strict=True))
            assert gap >= 0.7 * side - 1.5
            overlaps += gap < side - 2
    assert overlaps > 30


def test_counts_styles_and_kinds_all_come() -> None:
    counts = Counter(len(scene.objects) for scene in SCENES)
    assert set(counts) == set(range(2, MOST + 1))
    assert {scene.style for scene in SCENES} == set(STYLES)
    same = [len({placed.noun for placed in scene.objects}) == 1 for scene in SCENES]
    assert 0.4 < sum(same) / len(same) < 0.6
    assert any(placed.colour for scene in SCENES for placed in scene.objects)


def test_every_object_stands_out() -> None:
    facts, vocabulary = load_sprite_facts(), load_vocabulary()
    for scene in SCENES:
        for placed in scene.objects:
            slug = placed.variant or vocabulary.noun(placed.noun).slug
            assert facts.contrast_ok(scene.style, slug, placed.colour, scene.background)


def test_nouns_can_be_chosen() -> None:
    scenes = [crowd_scene(0, position, ["noto"], ["cat", "dog"]) for position in range(20)]
    assert {placed.noun for scene in scenes for placed in scene.objects} == {"cat", "dog"}
