"""The tokenizer: CLIP's format, every text, few tokens for our words, the same result each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from vega_diffusion.data.scenes import tokenizer as module
from vega_diffusion.data.scenes.captions import caption
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.tokenizer import (
    BOS,
    EOS,
    VOCABULARY_SIZE,
    byte_alphabet,
    load_tokenizer,
    tokenizer_folder,
    train_tokenizer,
    write_tokenizer,
)
from vega_diffusion.data.scenes.vocabulary import load_vocabulary

CARD_PROMPT = "A cute cat eating a slice of pizza, stunning color scheme, masterpiece, illustration"
CARD_NEGATIVE = "(worst quality, low quality, illustration, 3d, 2d, painting, cartoons, sketch)"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return load_tokenizer()


def plain(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_ids_are_laid_out_as_clip_lays_them_out(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer.get_vocab()
    assert sorted(ids.values()) == list(range(VOCABULARY_SIZE))
    assert ids["!"] == 0
    assert (ids[BOS], ids[EOS]) == (VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1)
    assert tokenizer.model_max_length == 77
    assert tokenizer("a cat").input_ids == [ids[BOS], ids["a</w>"], ids["cat</w>"], ids[EOS]]


def test_every_merge_makes_a_known_token() -> None:
    ids = json.loads((tokenizer_folder() / "vocab.json").read_text(encoding="utf-8"))
    version, *merges = (tokenizer_folder() / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert version == "#version: 0.2"
    assert len(merges) == VOCABULARY_SIZE - 2 * 256 - 2
    for merge in merges:
        first, second = merge.split(" ")
        assert first in ids, merge
        assert second in ids, merge
        assert first + second in ids, merge


def test_first_pads_with_the_end_and_second_with_id_0(tokenizer: CLIPTokenizer) -> None:
    first = tokenizer("a cat", padding="max_length").input_ids
    second = load_tokenizer(second=True)("a cat", padding="max_length").input_ids
    assert len(first) == len(second) == 77
    assert set(first[4:]) == {VOCABULARY_SIZE - 1}
    assert set(second[4:]) == {0}
    assert first[:4] == second[:4]


def test_captions_come_back(tokenizer: CLIPTokenizer) -> None:
    for position in range(300):
        text = caption(sample_scene(4, position), 4, position)
        ids = tokenizer(text).input_ids
        assert len(ids) <= 40
        back = str(tokenizer.decode(ids, skip_special_tokens=True))
        assert back.replace(" ", "") == text.lower().replace(" ", "")


@pytest.mark.parametrize("text", ["Ünïcödé straße", "猫とピザ", "🐱🍕", "\x07\u200d\ufffd", "кот ест пиццу", "a\t\n b"])
def test_bytes_cover_every_text(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = plain(tokenizer, text)
    assert VOCABULARY_SIZE - 1 not in ids, "the unknown token is the end token: it must never be needed"
    back = str(tokenizer.decode(ids))
    assert "".join(back.split()) == "".join(text.lower().split())


def test_our_words_take_few_tokens(tokenizer: CLIPTokenizer) -> None:
    for name in load_vocabulary().names:
        assert len(plain(tokenizer, name)) <= 4, name
    lengths = [len(plain(tokenizer, form.text)) for noun in load_vocabulary().nouns.values() for form in noun.forms]
    assert sum(lengths) / len(lengths) <= 1.9
    assert len(tokenizer(CARD_PROMPT).input_ids) == 18
    assert len(tokenizer(CARD_NEGATIVE).input_ids) < 40


def test_the_alphabet_is_all_bytes() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert alphabet[0] == "!"
    assert not any(character.isspace() for character in alphabet)


def test_training_gives_the_same_result_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CAPTIONS", 800)
    monkeypatch.setattr(module, "_NOUN_WEIGHT", 5)
    assert train_tokenizer() == train_tokenizer()


def test_the_published_layout(tmp_path: Path) -> None:
    names = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}
    for second, pad in ((False, EOS), (True, "!")):
        folder = tmp_path / str(second)
        write_tokenizer(folder, second=second)
        assert {path.name for path in folder.iterdir()} == names
        loaded = CLIPTokenizer.from_pretrained(str(folder))
        assert loaded.pad_token == pad
        assert loaded.model_max_length == 77
        assert loaded(CARD_PROMPT).input_ids == load_tokenizer(second)(CARD_PROMPT).input_ids
