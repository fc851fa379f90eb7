"""The vocabulary: complete, unambiguous, grammatical, and in step with the sprites that come with the package."""

from __future__ import annotations

from collections import Counter

import pytest

from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.scene import BACKGROUNDS, HELD_OUT_STYLE, HUES, LINE_STYLE, PLACES, STYLES
from vega_diffusion.data.scenes.sprite_facts import ALL_BACKGROUNDS, load_sprite_facts, measure_sprites
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import InvalidValue

VOCABULARY = load_vocabulary()
NOUNS = list(VOCABULARY.nouns.values())


def test_186_core_nouns_and_21_professions_of_which_the_astronaut_is_both() -> None:
    assert len(NOUNS) == 207
    assert sum(noun.person for noun in NOUNS) == 22
    assert len({noun.slug for noun in NOUNS}) == 207


def test_styles_draw_most_nouns() -> None:
    drawn = {style: len(VOCABULARY.drawn_by(style)) for style in (*STYLES, HELD_OUT_STYLE)}
    assert min(drawn[style] for style in STYLES) >= 180
    assert drawn[HELD_OUT_STYLE] >= 160


def test_no_word_means_two_nouns() -> None:
    said = Counter(word.lower() for noun in NOUNS for form in noun.forms for word in {form.text, form.plural} - {""})
    assert [word for word, times in said.items() if times > 1] == []


def test_the_plain_form_is_the_name() -> None:
    assert [noun.name for noun in NOUNS if noun.forms[0].text.lower() != noun.name] == []


def test_count_forms_have_article_and_plural_and_others_have_neither() -> None:
    for noun in NOUNS:
        for form in noun.forms:
            if form.kind == "count":
                assert form.article in ("a", "an"), form
                assert form.plural, form
            else:
                assert form.article == form.plural == "", form


@pytest.mark.parametrize(("word", "article"), [("hourglass", "an"), ("unicorn", "a"), ("UFO", "a"), ("egg", "an")])
def test_articles_follow_the_sound(word: str, article: str) -> None:
    assert {form.article for noun in NOUNS for form in noun.forms if form.text == word} == {article}


@pytest.mark.parametrize("name", ["glasses", "scissors", "grapes", "french fries", "headphones", "cherries"])
def test_plural_only_nouns_have_a_countable_form_of_another_word(name: str) -> None:
    noun = VOCABULARY.noun(name)
    assert noun.plural_only
    assert noun.countable_forms
    assert all(form.text != name for form in noun.countable_forms)


@pytest.mark.parametrize("name", ["alarm clock", "taxi", "money bag", "globe", "piano keyboard"])
def test_lettering_is_marked(name: str) -> None:
    assert VOCABULARY.noun(name).lettering


def test_persons_can_be_drawn_as_man_and_as_woman_in_every_style_that_draws_them() -> None:
    for noun in NOUNS:
        if noun.person:
            for style in set(noun.styles) & set(STYLES):
                genders = {noun.variants[slug].gender for slug in noun.drawings(style)}
                assert genders >= {"man", "woman"} or (noun.name, style) == ("detective", "fluent3d")


def test_an_unknown_noun_is_an_error_in_one_line() -> None:
    with pytest.raises(InvalidValue, match="noun: 'wug' is not allowed"):
        VOCABULARY.noun("wug")


@pytest.fixture(scope="module")
def sample() -> SpriteAtlas:
    return SpriteAtlas.load()


def test_the_sample_draws_every_noun_in_every_training_style(sample: SpriteAtlas) -> None:
    wanted = {(style, slug) for style in STYLES for noun in NOUNS for slug in noun.drawings(style)}
    assert wanted - set(sample.index) == set()


def test_committed_facts_are_those_of_the_sprites(sample: SpriteAtlas) -> None:
    """The sample is lossy, so a sprite at the edge of a rule may fall to the other side; most must not."""
    some = {key: row for key, row in sample.index.items() if row % 32 == 0}
    measured = measure_sprites(SpriteAtlas(some, sample.sprites)).rows
    committed = load_sprite_facts().rows
    assert len(measured) >= 40
    same = sum(tuple(row) == tuple(committed[key]) for key, row in measured.items())
    assert same >= 0.8 * len(measured)


def test_every_sprite_can_be_seen_somewhere_and_facts_cover_the_vocabulary() -> None:
    facts = load_sprite_facts()
    for noun in NOUNS:
        for style in noun.styles:
            for slug in noun.drawings(style):
                assert len(facts.backgrounds(style, slug, None)) >= 3, (style, slug)


def test_white_things_are_not_shown_on_white_nor_red_ones_on_red() -> None:
    facts = load_sprite_facts()
    assert not facts.contrast_ok("noto", "tooth", None, "white")
    assert not facts.contrast_ok("twemoji", "red-apple", None, "red")
    assert facts.contrast_ok("noto", "cat", None, "blue")
    assert not facts.contrast_ok("noto", "wug", None, "blue")


def test_line_art_keeps_its_black_and_stays_on_light_backgrounds() -> None:
    facts = load_sprite_facts()
    for slug in VOCABULARY.slugs:
        assert facts.colours(LINE_STYLE, slug) == ()
        assert not facts.backgrounds(LINE_STYLE, slug, None) & {"black", "night", "blue", "purple", "sea"}


def test_persons_and_rainbows_keep_their_colours() -> None:
    facts = load_sprite_facts()
    for style in STYLES:
        for noun in NOUNS:
            if noun.person or noun.name == "rainbow":
                assert all(facts.colours(style, slug) == () for slug in noun.drawings(style))
    assert set(facts.colours("noto", "balloon")) == set(HUES)


def test_names_of_backgrounds_fit_the_table() -> None:
    assert (*BACKGROUNDS, *PLACES) == ALL_BACKGROUNDS
