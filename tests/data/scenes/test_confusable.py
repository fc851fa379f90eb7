"""Merged and left-out nouns: known names, reasons, tight groups, and every profession out."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from vega_diffusion.data.scenes import confusable
from vega_diffusion.data.scenes.confusable import left_out_nouns, merged_nouns
from vega_diffusion.data.scenes.subjects import CAT, load_subjects
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import InvalidValue

TABLE = json.loads((files("vega_diffusion.data.scenes") / "confusable.json").read_text())


def test_every_entry_is_known_and_has_a_reason() -> None:
    known = {*load_vocabulary().names, *load_subjects()}
    assert len(TABLE["groups"]) >= 2
    for group in TABLE["groups"]:
        assert set(group["nouns"]) <= known
        assert 2 <= len(group["nouns"]) <= 3, "a large group would pass anything"
        assert len(group["reason"]) > 10
    assert set(TABLE["left_out"]) <= known
    assert all(len(reason) > 10 for reason in left_out_nouns().values())
    grouped = [noun for group in TABLE["groups"] for noun in group["nouns"]]
    assert len(grouped) == len(set(grouped)), "groups do not chain"


def test_merging_is_mutual_among_nouns_and_names_the_asked_one_first() -> None:
    for noun in load_vocabulary().names:
        merged = merged_nouns(noun)
        assert merged[0] == noun
        for other in merged[1:]:
            assert other in load_subjects() or noun in merged_nouns(other)
    assert merged_nouns("taxi") == ("taxi", "car")
    assert merged_nouns("banana") == ("banana",)


def test_the_cat_subject_is_a_cat_but_a_cat_is_not_the_subject() -> None:
    assert merged_nouns("cat") == ("cat", CAT)
    assert merged_nouns(CAT) == (CAT,)


def test_an_unknown_noun_is_refused() -> None:
    with pytest.raises(InvalidValue, match="unicorn-shop"):
        merged_nouns("unicorn-shop")


def test_no_test_asks_for_a_person() -> None:
    nouns = load_vocabulary().nouns
    assert sum(noun.person for noun in nouns.values()) == 22
    assert not [name for name in confusable.testable_nouns() if nouns[name].person]
    assert len(confusable.testable_nouns()) >= 170
