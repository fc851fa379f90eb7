"""Captions: they say what the scene shows, in good English, in many ways."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from vega_diffusion.data.scenes import words
from vega_diffusion.data.scenes.captions import caption, caption_with_mentions
from vega_diffusion.data.scenes.grammar import SceneMix, sample_scene
from vega_diffusion.data.scenes.scene import CAPTION_KINDS, LINE_STYLE, PLACES, PlacedObject, Scene
from vega_diffusion.data.scenes.targets import (
    IGNORE,
    mention_classes,
    mention_targets,
    slot_sizes,
    spec_targets,
    target_classes,
)
from vega_diffusion.data.scenes.vocabulary import load_vocabulary

SCENES = [sample_scene(21, position) for position in range(6000)]
PAIRS = [(scene, caption(scene, 21, position)) for position, scene in enumerate(SCENES)]
VOCABULARY = load_vocabulary()
BOX = (30, 30, 100, 100)


def says(text: str, phrases: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) for phrase in phrases)


def words_of(noun: str) -> tuple[str, ...]:
    return tuple(word for form in VOCABULARY.noun(noun).forms for word in (form.text, form.plural) if word)


def colour_words(colour: str) -> tuple[str, ...]:
    return words.COLOUR_WORDS.get(colour, (colour,))


def test_a_caption_depends_on_its_arguments_only() -> None:
    assert [caption(scene, 21, position) for position, scene in enumerate(SCENES[:200])] == [p[1] for p in PAIRS[:200]]
    assert len({caption(SCENES[0], 21, position) for position in range(200)}) >= 60


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_every_kind_has_many_phrasings(kind: str) -> None:
    scene = next(scene for scene in SCENES if scene.caption_kind == kind)
    assert len({caption(scene, 0, position).lower().rstrip(".") for position in range(100)}) >= 25


def test_every_noun_is_said_by_one_of_its_words() -> None:
    for scene, text in PAIRS:
        for placed in scene.objects:
            assert says(text, words_of(placed.noun)), (text, placed.noun)


def test_colours_are_said_in_the_order_of_binding() -> None:
    for scene, text in PAIRS:
        for placed in scene.objects:
            if placed.colour:
                bound = tuple(
                    f"{colour} {word}" for colour in colour_words(placed.colour) for word in words_of(placed.noun)
                )
                assert says(text, bound), text


def test_backgrounds_are_said_where_the_scene_asks_for_it_and_not_otherwise() -> None:
    for scene, text in PAIRS:
        if scene.background in PLACES:
            phrases = words.PLACE_PHRASES[scene.background] + words.PLACE_TAGS[scene.background]
            assert says(text, phrases) == scene.background_in_caption, text
        else:
            said = re.search(r"background|backdrop", text.lower()) is not None
            assert said == scene.background_in_caption, text
            if said:
                pattern = "|".join(colour_words(scene.background))
                assert re.search(rf"({pattern}) (background|backdrop)", text.lower()), text


def test_styles_are_said_where_the_scene_asks_for_it_and_not_otherwise() -> None:
    for scene, text in PAIRS:
        own = words.STYLE_TAGS[scene.style] + words.STYLE_MEDIA[scene.style] + words.STYLE_ENDINGS[scene.style]
        assert says(text, own) == scene.style_in_caption, text
    assert {scene.style_in_caption for scene in SCENES if scene.style != LINE_STYLE} == {True, False}


def test_sizes_counts_and_relations_are_said() -> None:
    seen: Counter[str] = Counter()
    for scene, text in PAIRS:
        if scene.size_word:
            assert says(text, words.SIZE_ADJECTIVES[scene.size_word]), text
        if scene.caption_kind == "count" and VOCABULARY.noun(scene.objects[0].noun).countable_forms:
            assert says(text, words.NUMBER_WORDS[scene.count]), text
            forms = VOCABULARY.noun(scene.objects[0].noun).countable_forms
            assert says(text, tuple(form.text if scene.count == 1 else form.plural for form in forms)), text
        if scene.relation:
            reverse = tuple(phrase.split("{first}")[1].strip() for phrase in words.REVERSED_WORDS[scene.relation])
            assert says(text, words.RELATION_WORDS[scene.relation] + reverse), text
        seen[scene.caption_kind] += 1
    assert len(seen) == len(CAPTION_KINDS)


def test_gender_is_said_where_the_scene_asks_for_it_and_not_otherwise() -> None:
    mix = SceneMix(kinds=(("single", 1.0),), nouns=("doctor", "cook", "judge"), gender_word_rate=0.5)
    said = 0
    for position in range(400):
        scene = sample_scene(2, position, mix=mix)
        text = caption(scene, 2, position)
        target = spec_targets(scene)["gender"]
        assert says(text, ("male", "female", "man", "woman")) == (target != IGNORE), text
        if target != IGNORE:
            wanted = target_classes()["gender"][target]
            assert wanted in (scene.objects[0].variant or "").split("-"), text
            said += 1
    assert 60 <= said <= 200


def test_articles_numbers_and_spaces_are_right() -> None:
    for _, text in PAIRS:
        lower = text.lower()
        assert not re.search(r"  | ,|^ | $", text), text
        assert not re.search(r"\ba [aeio]\w", lower.replace("one", "wun")), text
        assert not re.search(r"\ban [^aeiouh]", lower), text
        assert not re.search(
            r"\ban? (glasses|scissors|grapes|headphones|french fries|cherries|bread|sushi)\b", lower
        ), text
        assert not re.search(r"\b(two|three|four|[234]) (glasses|scissors|grapes|headphones|bread|sushi)\b", lower), (
            text
        )
        assert not re.search(r"\b(there|here) is (two|three|four|glasses|scissors|grapes)\b", lower), text


def test_captions_are_varied() -> None:
    texts = Counter(text.lower() for _, text in PAIRS)
    assert len(texts) >= 0.97 * len(PAIRS)
    assert sum(len(text.split()) <= 2 for text in texts) >= 50  # as short as users write
    first = Counter(text[0].isupper() for _, text in PAIRS)
    assert 0.2 <= first[True] / len(PAIRS) <= 0.8


def test_the_words_of_the_model_card_are_inside_the_distribution() -> None:
    cat, pizza = PlacedObject("cat", (4, 40, 58, 94)), PlacedObject("pizza", (66, 40, 120, 94))
    scene = Scene((cat, pizza), "white", "noto", caption_kind="two")
    texts = [caption(scene, 0, position).lower().rstrip(".") for position in range(4000)]
    for part in (
        "a cute cat eating a",
        "cat eating a slice of pizza",
        ", stunning color scheme, masterpiece, illustration",
    ):
        assert sum(part in text for text in texts) >= 5, part


def test_targets_are_classes_or_ignored() -> None:
    sizes = slot_sizes()
    assert (sizes["object1"], sizes["background"]) == (207, 17)
    for scene in SCENES:
        targets = spec_targets(scene)
        assert targets.keys() == sizes.keys()
        assert all(target == IGNORE or 0 <= target < sizes[slot] for slot, target in targets.items())


def test_targets_name_the_scene() -> None:
    red_cat = PlacedObject("cat", BOX, "red")
    scene = Scene((red_cat, PlacedObject("dog", BOX)), "snow", "noto", relation="left of", caption_kind="relation")
    names = target_classes()

    def named(scene: Scene) -> dict[str, str | None]:
        return {slot: None if target == IGNORE else names[slot][target] for slot, target in spec_targets(scene).items()}

    assert named(scene) == {
        "object1": "cat",
        "colour1": "red",
        "object2": "dog",
        "colour2": "natural",
        "relation": "left of",
        "count": "1",
        "size": None,
        "background": None,
        "style": None,
        "gender": None,
    }
    told = named(replace(scene, background_in_caption=True, style_in_caption=True, relation=None, caption_kind="two"))
    assert (told["background"], told["style"], told["relation"]) == ("snow", "noto", None)
    three = named(Scene((red_cat,) * 3, "white", "noto", caption_kind="count", count=3))
    assert (three["count"], three["object2"], three["colour2"], three["relation"]) == ("3", "nothing", None, "nothing")


def test_mentions_end_where_the_nouns_words_end() -> None:
    known = 0
    for position, (scene, text) in enumerate(PAIRS):
        same, ends = caption_with_mentions(scene, 21, position)
        assert same == text
        assert len(ends) == (1 if scene.count > 1 else len(scene.objects))
        for placed, end in zip(scene.objects, ends, strict=False):
            if end is None:
                continue
            known += 1
            opening = text[:end].lower()
            assert any(opening.endswith(word.lower()) for word in words_of(placed.noun)), (text, placed.noun)
            assert not text[end : end + 1].isalnum(), text
            if placed.colour:
                bound = [f"{colour} " for colour in colour_words(placed.colour)]
                assert any(word in opening for word in bound), text
    assert known >= 0.98 * sum(1 if scene.count > 1 else len(scene.objects) for scene in SCENES)


def test_what_is_said_up_to_a_mention() -> None:
    classes = mention_classes()

    def named(scene: Scene, ends: tuple[int | None, ...]) -> list[tuple[str | None, ...]]:
        found = mention_targets(scene, ends)
        assert found.keys() == classes.keys()
        rows = zip(*(found[slot] for slot in classes), strict=True)
        return [
            tuple(None if value == IGNORE else classes[slot][value] for slot, value in zip(classes, row, strict=True))
            for row in rows
        ]

    nothing = (None, None, None, None)
    cat, dog = PlacedObject("cat", BOX, "red"), PlacedObject("dog", BOX)
    beside = Scene((cat, dog), "snow", "noto", relation="left of", caption_kind="relation")
    first = ("cat", "red", "1", "named first")
    assert named(beside, (9, 20)) == [first, ("dog", "natural", "1", "right of")]
    # "a dog with a red cat to its left": the dog comes first, and the cat is seen from it.
    assert named(beside, (30, 5)) == [("cat", "red", "1", "left of"), ("dog", "natural", "1", "named first")]
    assert named(beside, (9, None)) == [("cat", "red", "1", None), nothing]
    two = replace(beside, relation=None, caption_kind="two")
    assert named(two, (9, 20)) == [first, ("dog", "natural", "1", "nothing")]
    three = Scene((cat,) * 3, "snow", "noto", caption_kind="count", count=3)
    assert named(three, (14,)) == [("cat", "red", "3", "named first"), nothing]
