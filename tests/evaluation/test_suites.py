"""The committed prompt files: made by their rules, disjoint where they must be, true about what training has seen."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.scene import BACKGROUNDS, PLACES, STYLES
from vega_diffusion.data.scenes.splits import held_out_part, scene_combinations
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.evaluation.compose import NUM_PROMPTS, asked_nouns, half_of, phrase
from vega_diffusion.evaluation.natural_prompts import CARD_NEGATIVE, CARD_PROMPT
from vega_diffusion.evaluation.object_colours import askable_colours, near_colours
from vega_diffusion.evaluation.renders import drawable_styles
from vega_diffusion.evaluation.suites import Suite, check_prompts, prompt_combinations, read_suite, suite_path
from vega_diffusion.specs.evaluation import OVERALL_KINDS, SuiteKind

ROOT = Path(__file__).parents[2]
PAIR_KINDS = {"two_objects", "colours", "position", "attribute_binding", "place"}


@pytest.fixture(scope="module")
def suites() -> dict[str, Suite]:
    return {split: read_suite("scenes", split) for split in ("dev", "test")}


def test_the_files_are_what_their_rules_make(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_suites.py"))
    assert script["main"](["--output", str(tmp_path)]) == 0
    for split in ("dev", "test"):
        path = suite_path("scenes", split)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), "run scripts/make_suites.py"


def test_sizes(suites: dict[str, Suite]) -> None:
    for split, suite in suites.items():
        counts = Counter(prompt.kind for prompt in suite.prompts)
        assert counts == NUM_PROMPTS[split]  # type: ignore[index]
        assert list(counts) == list(get_args(SuiteKind)), "kind by kind"
    assert (len(suites["test"].prompts), suites["test"].num_images) == (549, 2196)
    assert (len(suites["dev"].prompts), suites["dev"].num_images) == (175, 350)


def test_ids_and_seeds_are_unique_over_both_files(suites: dict[str, Suite]) -> None:
    for suite in suites.values():
        assert len({prompt.id for prompt in suite.prompts}) == len(suite.prompts)
        assert len({prompt.prompt for prompt in suite.prompts}) == len(suite.prompts)
    seeds = [seed for suite in suites.values() for prompt in suite.prompts for seed in prompt.seeds]
    assert len(set(seeds)) == len(seeds)


def test_no_combination_stands_in_both_files(suites: dict[str, Suite]) -> None:
    found = [{c for prompt in suite.prompts for c in prompt_combinations(prompt)} for suite in suites.values()]
    assert all(len(combinations) > 50 for combinations in found)
    assert not found[0] & found[1]
    texts = [{prompt.prompt for prompt in suite.prompts} for suite in suites.values()]
    assert not texts[0] & texts[1]


def test_unseen_is_the_truth(suites: dict[str, Suite]) -> None:
    for split, suite in suites.items():
        for prompt in suite.prompts:
            parts = {held_out_part(*combination) for combination in prompt_combinations(prompt)} - {None}
            assert parts <= {split}, prompt.id
            assert prompt.unseen == bool(parts), prompt.id
            assert not prompt.unseen or prompt.kind in PAIR_KINDS | {"natural"}


def test_training_shows_no_unseen_combination_and_some_seen_ones(suites: dict[str, Suite]) -> None:
    asked = {
        c: prompt.unseen for suite in suites.values() for prompt in suite.prompts for c in prompt_combinations(prompt)
    }
    unseen = {c for c in asked if held_out_part(*c)}
    shown = {c for position in range(3000) for c in scene_combinations(sample_scene(5, position))}
    assert len(unseen) > 100
    assert not unseen & shown
    assert shown & set(asked)


def test_kinds_with_pairs_ask_for_both(suites: dict[str, Suite]) -> None:
    for suite in suites.values():
        for kind in PAIR_KINDS:
            unseen = [prompt.unseen for prompt in suite.prompts if prompt.kind == kind]
            assert 0.15 < sum(unseen) / len(unseen) < 0.75, kind


def test_every_prompt_can_be_drawn_and_asks_for_no_people(suites: dict[str, Suite]) -> None:
    vocabulary = load_vocabulary()
    for suite in suites.values():
        for prompt in suite.prompts:
            assert prompt.objects
            assert drawable_styles(prompt), prompt.id
            for expected in prompt.objects:
                assert expected.nouns[0] in {noun.name for noun in asked_nouns()}
                assert not any(vocabulary.noun(name).person for name in expected.nouns if name in vocabulary.nouns)
                assert expected.colour is None or expected.colour in askable_colours(expected.nouns[0])
            if len(prompt.objects) == 2:
                assert not set(prompt.objects[0].nouns) & set(prompt.objects[1].nouns)


def test_values_are_covered(suites: dict[str, Suite]) -> None:
    for suite in suites.values():
        of = {kind: [prompt for prompt in suite.prompts if prompt.kind == kind] for kind in get_args(SuiteKind)}
        assert {prompt.background for prompt in of["background"]} == set(BACKGROUNDS)
        assert {prompt.background for prompt in of["place"]} == set(PLACES)
        assert {prompt.style for prompt in of["style"]} == set(STYLES)
        assert {prompt.objects[0].count for prompt in of["counting"]} == {2, 3, 4}
        relations = Counter(prompt.relation for prompt in of["position"])
        assert set(relations) == {"left of", "right of", "above", "below"}
        assert max(relations.values()) - min(relations.values()) <= 4
        assert all(first.colour != second.colour for first, second in (p.objects for p in of["attribute_binding"]))


def test_the_cards_prompt_is_asked_with_its_negative_prompt(suites: dict[str, Suite]) -> None:
    (card,) = [prompt for prompt in suites["test"].prompts if prompt.prompt == CARD_PROMPT]
    assert card.kind == "natural"
    assert card.negative_prompt == CARD_NEGATIVE
    assert [expected.nouns[0] for expected in card.objects] == ["cat", "pizza"]
    assert half_of(("noun-noun", "cat", "pizza")) == "test"


def test_plain_words() -> None:
    noun = load_vocabulary().noun
    assert phrase(noun("cat")) == "a cat"
    assert phrase(noun("scissors")) == "scissors"
    assert phrase(noun("heart"), colour="orange") == "an orange heart"
    assert phrase(noun("die"), count=3) == "three dice"


def test_a_colour_that_a_thing_has_anyway_is_not_asked_for() -> None:
    assert "red" not in askable_colours("tomato")
    assert "blue" in askable_colours("tomato")
    assert near_colours(125.0) == ("green",)
    assert near_colours(14.0) == ("red", "orange")
    assert near_colours(355.0) == ("red",)


def test_a_limit_keeps_the_first_of_each_kind(suites: dict[str, Suite]) -> None:
    few = suites["test"].limited(3)
    assert Counter(prompt.kind for prompt in few.prompts) == dict.fromkeys(get_args(SuiteKind), 3)
    assert few.sha256 == suites["test"].sha256
    assert few.limit == 3
    assert set(few.prompts) <= set(suites["test"].prompts)
    with pytest.raises(InvalidValue, match="limit"):
        suites["test"].limited(0)


def test_unknown_names_and_damaged_files_are_one_line(suites: dict[str, Suite]) -> None:
    for name, split in (("photos", "dev"), ("scenes", "train")):
        with pytest.raises(InvalidValue, match="allowed"):
            read_suite(name, split)
    first, second = suites["dev"].prompts[:2]
    for broken in ((first, first), (first, second.model_copy(update={"seeds": first.seeds})), ()):
        with pytest.raises(VegaError, match="make_suites"):
            check_prompts("x", broken)
    with pytest.raises(VegaError, match="follow"):
        check_prompts("x", [first.model_copy(update={"seeds": (5, 7)})])


def test_overall_is_the_mean_of_six_kinds() -> None:
    assert len(OVERALL_KINDS) == 6
