"""The judged pictures carry nothing but pixels, are chosen by rule, and answers are scored by fixed words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vega_diffusion import Engine, GenerateRequest
from vega_diffusion.benchmarks.blind_naming import PICTURES, draw, measure, names_it, objects
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import VegaError


@pytest.fixture(scope="module")
def drawn(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(str(model_folders["tiny"]), tmp_path_factory.mktemp("blind") / "new")


def test_files_tell_the_judge_nothing_and_the_key_tells_how_each_was_made(
    drawn: Path, model_folders: dict[str, Path]
) -> None:
    key = json.loads((drawn / "key.json").read_text())
    pictures = sorted(drawn.glob("*.png"))
    assert sorted(key) == [path.name for path in pictures]
    assert [entry["seed"] for entry in key.values()] == list(range(PICTURES))
    assert [entry["noun"] for entry in key.values()] == [noun.name for noun in objects()]
    assert not any(Image.open(path).info for path in pictures)
    assert not any(entry["noun"] in name for name, entry in key.items())
    name, entry = list(key.items())[3]
    engine = Engine.load(str(model_folders["tiny"]))
    (again,) = engine.generate(GenerateRequest(prompt=entry["prompt"], seed=entry["seed"]))
    assert np.array_equal(np.asarray(again.image), np.asarray(Image.open(drawn / name)))


def test_nothing_is_drawn_over_older_pictures(drawn: Path, model_folders: dict[str, Path]) -> None:
    with pytest.raises(VegaError, match="not there yet"):
        draw(str(model_folders["tiny"]), drawn)


@pytest.mark.parametrize(
    ("answer", "noun", "right"),
    [
        ("An owl.", "owl", True),
        ("two OWLS", "owl", True),
        ("a bowl", "owl", False),
        ("a bird", "owl", False),
        ("slice of pizza", "pizza", True),
        ("", "owl", False),
        ("hot-dog stand", "dog", False),
    ],
)
def test_an_answer_is_right_where_it_holds_one_of_the_words(answer: str, noun: str, right: bool) -> None:
    assert names_it(answer, load_vocabulary().noun(noun)) is right


def test_every_object_is_named_by_its_own_words_and_by_no_other_object_s() -> None:
    nouns = objects()
    for noun in nouns:
        assert [other.name for other in nouns if names_it(noun.forms[0].text, other)] == [noun.name]


def test_the_score_counts_what_was_said(drawn: Path) -> None:
    key = json.loads((drawn / "key.json").read_text())
    answers = {name: entry["noun"] if entry["seed"] < 6 else "a blot" for name, entry in key.items()}
    (drawn / "answers.json").write_text(json.dumps(answers))
    found = measure(drawn)
    assert (found.summary["named"], found.samples["named"]) == (6, [1.0] * 6 + [0.0] * 4)
    assert not found.bars[0].met
    assert found.summary[f"seed 7, {objects()[7].name}"] == "a blot"
    answers.popitem()
    (drawn / "answers.json").write_text(json.dumps(answers))
    with pytest.raises(VegaError, match="every picture needs one"):
        measure(drawn)
