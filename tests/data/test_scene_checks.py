"""The checker's data: a function of position, true targets, masks where a filter or a spoiled picture hides them."""

from __future__ import annotations

import pytest
import torch

from vega_diffusion.data.scene_checks import SceneChecks, check_mix, plan_check, same_look, seen_box, sprite_extents
from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.checker_classes import DRAWN_STYLES, OTHER, checker_spec
from vega_diffusion.data.scenes.crowd import MOST
from vega_diffusion.data.scenes.filters import FILTERS
from vega_diffusion.data.scenes.scene import STYLES, PlacedObject, Scene
from vega_diffusion.data.scenes.splits import held_out_combinations
from vega_diffusion.data.scenes.subjects import CAT, load_subjects, place_subject
from vega_diffusion.data.scenes.targets import IGNORE
from vega_diffusion.errors import VegaError
from vega_diffusion.specs.data import SceneChecksSpec, SceneMixSpec

SPEC = SceneChecksSpec(seed=5, mix=SceneMixSpec(styles=STYLES))
CLEAN = {"worn_rate": 0.0, "spoiled_rate": 0.0, "filter_rate": 0.0, "subject_rate": 0.0, "crowd_rate": 0.0}
NAMES = checker_spec()


@pytest.fixture(scope="module")
def atlas() -> SpriteAtlas:
    return SpriteAtlas.load()


@pytest.fixture(scope="module")
def source(atlas: SpriteAtlas) -> SceneChecks:
    return SceneChecks(SPEC, atlas, "sample")


def test_a_sample_depends_on_its_position_alone(source: SceneChecks) -> None:
    together = source.load(range(24))
    alone = source.load([9])
    for name, values in together.tensors.items():
        torch.testing.assert_close(alone.tensors[name][0].float(), values[9].float(), atol=2e-5, rtol=0)
    assert torch.equal(source.load(range(24)).tensors["pixels"], together.tensors["pixels"])
    assert alone.sample_ids == ["check 5/9"]


def test_shapes_and_ranges(source: SceneChecks) -> None:
    tensors = source.load(range(40)).tensors
    assert tensors["pixels"].shape == (40, 3, 128, 128)
    assert tensors["pixels"].abs().max() <= 1
    assert tensors["boxes"].shape == (40, MOST, 4)
    present = tensors["boxes"][..., 2] > tensors["boxes"][..., 0]
    assert torch.equal(present, tensors["nouns"] != IGNORE)
    assert present.sum(1).min() >= 1
    assert present.sum(1).max() >= 5
    assert tensors["boxes"].min() >= 0
    assert tensors["boxes"].max() <= 128
    for name, count in (("nouns", 215), ("colours", 8), ("style", 11), ("background", 17)):
        known = tensors[name][tensors[name] != IGNORE]
        assert 0 <= known.min() <= known.max() < count


def test_plans_come_at_their_rates() -> None:
    mix = check_mix(SPEC)
    plans = [plan_check(SPEC, mix, position) for position in range(2000)]
    share = {
        "crowd": sum(len({p.noun for p in s.objects}) > 2 or len(s.objects) > 4 for s, _, _ in plans) / 2000,
        "filter": sum(name is not None for _, name, _ in plans) / 2000,
        "spoiled": sum(broken for _, _, broken in plans) / 2000,
        "subject": sum(any("subject/" in (p.variant or "") for p in s.objects) for s, _, _ in plans) / 2000,
    }
    assert 0.15 < share["crowd"] < 0.4
    assert 0.06 < share["filter"] < 0.2
    assert share["spoiled"] == pytest.approx(0.04, abs=0.015)
    assert share["subject"] == pytest.approx(0.12, abs=0.03)
    assert {name for _, name, _ in plans} == {None, *FILTERS}
    assert any(held_out_combinations(scene) for scene, _, _ in plans), "a judge knows all combinations"


def test_all_seven_styles_unless_the_recipe_says_otherwise(atlas: SpriteAtlas) -> None:
    assert check_mix(SceneChecksSpec()).styles == DRAWN_STYLES
    assert check_mix(SPEC).styles == STYLES
    with pytest.raises(VegaError, match=r"emojione.*vega data icons"):
        SceneChecks(SceneChecksSpec(), atlas, "sample")


def test_targets_say_what_the_picture_shows(source: SceneChecks) -> None:
    dog = PlacedObject("dog", (10, 20, 60, 70), "blue")
    balloon = PlacedObject("cat", (70, 20, 120, 70))
    found = source.targets(Scene((dog, balloon), "grass", "noto"), None, False)
    assert [NAMES.nouns[n] for n in found["nouns"][:2]] == ["dog", "cat"]
    assert NAMES.colours[found["colours"][0]] == "blue"
    assert NAMES.styles[found["style"]] == "noto"
    assert NAMES.backgrounds[found["background"]] == "grass"
    assert found["judged"]
    assert found["nouns"][2:].eq(IGNORE).all()


def test_filters_mask_what_they_hide(source: SceneChecks) -> None:
    dog = PlacedObject("dog", (10, 20, 60, 70), "blue")
    for name in FILTERS:
        plain = source.targets(Scene((dog,), "yellow", "noto"), name, False)
        place = source.targets(Scene((dog,), "beach", "noto"), name, False)
        assert NAMES.styles[plain["style"]] == name
        assert NAMES.nouns[plain["nouns"][0]] == "dog"
        assert (plain["colours"][0] == IGNORE) == (plain["background"] == IGNORE) == (name != "pixel")
        assert NAMES.backgrounds[place["background"]] == "beach"


def test_a_spoiled_picture_holds_something_else_somewhere(source: SceneChecks) -> None:
    found = source.targets(Scene((PlacedObject("dog", (10, 20, 60, 70)),), "yellow", "noto"), None, True)
    assert NAMES.nouns[found["nouns"][0]] == OTHER
    assert found["colours"][0] == found["style"] == IGNORE
    assert NAMES.backgrounds[found["background"]] == "yellow"
    assert not found["judged"]


def test_subjects_have_names_and_no_style_of_their_own(source: SceneChecks) -> None:
    placed = place_subject(load_subjects()[CAT], PlacedObject("dog", (10, 20, 60, 70)))
    found = source.targets(Scene((placed,), "yellow", "noto"), None, False)
    assert NAMES.nouns[found["nouns"][0]] == CAT
    assert found["style"] == IGNORE


def test_boxes_are_tight_and_end_at_the_edge_of_the_picture(atlas: SpriteAtlas) -> None:
    sprite = torch.zeros(1, 4, 128, 128, dtype=torch.uint8)
    sprite[0, :, 32:96, 1:127] = 255
    (extent,) = sprite_extents(SpriteAtlas({("noto", "x"): 0}, sprite))
    assert extent == pytest.approx((126 / 128, 0.5))
    assert seen_box((20, 20, 84, 84), (1.0, 0.5), (0, 0)) == (20, 36, 84, 68)
    assert seen_box((20, 20, 84, 84), (1.0, 0.5), (0, 32)) == (0, 36, 52, 68)
    assert len(sprite_extents(atlas)) == len(atlas.sprites)


def test_the_picture_has_something_in_the_box_and_nothing_around_it(source: SceneChecks) -> None:
    clean = source.varied(**CLEAN)
    mix, checked = check_mix(clean.spec), 0
    for position in range(60):
        scene, _, _ = plan_check(clean.spec, mix, position)
        if len(scene.objects) == 1 and scene.background == "white" and min(scene.original_size) >= 128:
            tensors = clean.load([position]).tensors
            x0, y0, x1, y1 = (round(edge) for edge in tensors["boxes"][0, 0].tolist())
            ink = (tensors["pixels"][0] - tensors["pixels"][0, :, :1, :1]).abs().amax(0) > 0.25
            rows, columns = ink.any(1).nonzero().flatten(), ink.any(0).nonzero().flatten()
            edges = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            assert edges == pytest.approx([x0, y0, x1, y1], abs=6)
            checked += 1
    assert checked >= 3


def test_a_drawing_that_has_an_object_colour_by_nature_has_no_colour_target(atlas: SpriteAtlas) -> None:
    rows = same_look(atlas, ["fluentflat", "fluentline", "noto"])
    assert atlas.index["fluentflat", "banana"] in rows  # yellow
    assert atlas.index["noto", "panda"] not in rows
    assert atlas.index["fluentline", "banana"] not in rows


def test_the_fingerprint_notices_other_rates_seeds_and_sprites() -> None:
    few = SpriteAtlas.load(styles=["noto"], slugs=["cat", "dog"])
    spec = SceneChecksSpec(mix=SceneMixSpec(styles=("noto",)))
    changed = [spec, spec.model_copy(update={"crowd_rate": 0.1}), spec.model_copy(update={"seed": 6})]
    prints = [SceneChecks(one, few, "sample").fingerprint() for one in (*changed, spec)]
    prints.append(SceneChecks(spec, few, "other").fingerprint())
    assert prints[0] == prints[3]
    assert len(set(prints)) == 4
