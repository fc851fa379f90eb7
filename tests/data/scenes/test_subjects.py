"""Subjects: openly licensed, in the package, in no ordinary atlas, and named by the checker."""

from __future__ import annotations

import torch
from PIL import Image

from vega_diffusion.data.scenes import subjects
from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.checker_classes import OTHER, checker_spec
from vega_diffusion.data.scenes.icons import SPRITE_PX
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import PlacedObject, Scene
from vega_diffusion.data.scenes.sprite_facts import ALL_BACKGROUNDS
from vega_diffusion.data.scenes.subjects import CAT, load_subjects, place_subject, shown_name, with_subjects
from vega_diffusion.data.scenes.vocabulary import load_vocabulary


def test_every_subject_has_a_sprite_a_licence_and_backgrounds() -> None:
    table = load_subjects()
    assert len(table) == 7
    assert next(iter(table)) == CAT
    for subject in table.values():
        with Image.open(subjects.folder() / subject.file) as picture:
            assert (picture.size, picture.mode) == ((SPRITE_PX, SPRITE_PX), "RGBA")
        assert subject.licence == ("CC-BY 4.0" if subject.name == CAT else "CC0 1.0")
        assert set(subject.backgrounds) <= set(ALL_BACKGROUNDS)
        assert len(subject.backgrounds) >= 8
    assert {path.name for path in subjects.folder().glob("*.png")} == {subject.file for subject in table.values()}
    assert not set(table) & set(load_vocabulary().names)


def test_only_an_atlas_that_asks_for_subjects_holds_them() -> None:
    plain = SpriteAtlas.load(styles=["noto"], slugs=["cat"])
    atlas = with_subjects(plain, ["noto", "twemoji"])
    assert set(plain.index) == {("noto", "cat")}
    assert len(atlas.sprites) == 1 + 7
    assert len(atlas.index) == 1 + 2 * 7
    rgb, alpha = atlas.sprites[:, :3], atlas.sprites[:, 3:]
    assert (rgb <= alpha).all(), "premultiplied"
    assert not [slug for _, slug in SpriteAtlas.load(styles=["twemoji"]).index if slug.startswith("subject/")]


def test_a_subject_is_drawn_in_place_of_an_object() -> None:
    renderer = SceneRenderer(with_subjects(SpriteAtlas.load(styles=["noto"], slugs=["cat"]), ["noto"]))
    placed = PlacedObject("cat", (20, 20, 110, 110))
    face = load_subjects()["face with beard"]
    scenes = [Scene((one,), "yellow", "noto") for one in (placed, place_subject(face, placed))]
    first, second = renderer.render(scenes)
    assert (first - second).abs().mean() > 0.05
    assert torch.equal(first[:, :18], second[:, :18])


def test_names_tell_subjects_from_nouns() -> None:
    cat = PlacedObject("cat", (0, 0, 64, 64))
    assert shown_name(cat, "emojione") == CAT
    assert shown_name(cat, "noto") == "cat"
    assert shown_name(PlacedObject("dog", (0, 0, 64, 64)), "emojione") == "dog"
    assert shown_name(place_subject(load_subjects()["face with glasses"], cat), "noto") == "face with glasses"
    assert shown_name(place_subject(load_subjects()[CAT], cat), "noto") == CAT


def test_the_checker_knows_all_nouns_all_subjects_and_what_is_neither() -> None:
    nouns = checker_spec().nouns
    assert nouns == (*load_vocabulary().names, *load_subjects(), OTHER)
    assert len(checker_spec().styles) == 11
    assert len(checker_spec().backgrounds) == 17
    assert checker_spec().colours[0] == "natural"
