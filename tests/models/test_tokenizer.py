"""Tokenizer files: round trips, the published settings, and the byte vocabulary's place in CLIP's."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from vega_diffusion.models.tokenizer import END, START, TokenizerFiles, byte_tokenizer

# A vocabulary with merges: "ca", "cat</w>", and "at</w>".
MERGED = TokenizerFiles(
    vocab={token: index for index, token in enumerate(["!", "c", "a", "t</w>", "at</w>", "cat</w>", START, END])},
    merges=("a t</w>", "c at</w>"),
)
TEXTS = ["A cat next to a slice of pizza!", "naïve café, 10 €", "  two   spaces\tand a tab", "", "🍕"]


@pytest.mark.parametrize("files", [byte_tokenizer(49408), byte_tokenizer(4096, "!"), MERGED], ids=["full", "mini", "m"])
def test_files_survive_writing_and_loading(files: TokenizerFiles, tmp_path: Path) -> None:
    files.write(tmp_path / "tokenizer")
    loaded = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert TokenizerFiles.of(loaded) == files
    assert TokenizerFiles.of(files.build()) == files
    for text in TEXTS:
        assert loaded(text).input_ids == files.build()(text).input_ids
    assert (loaded.model_max_length, files.build().model_max_length) == (77, 77)
    assert loaded.pad_token == files.pad_token


def test_merges_are_used(tmp_path: Path) -> None:
    MERGED.write(tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)("cat").input_ids == [6, 5, 7]


def test_the_byte_vocabulary_is_the_beginning_of_clips() -> None:
    """Known ids of CLIP's vocabulary: "!" is 0, "a" ends a word as 320, the ends of a text are the last two."""
    vocab = byte_tokenizer(49408).vocab
    assert (vocab["!"], vocab["a"], vocab["a</w>"]) == (0, 64, 320)
    assert (vocab[START], vocab[END]) == (49406, 49407)
    assert sorted(vocab.values()) == [*range(512), 49406, 49407]


def test_any_text_is_tokenized_without_unknowns_and_read_back() -> None:
    tokenizer = byte_tokenizer(4096).build()
    for text in TEXTS:
        tokens = tokenizer(text).input_ids
        assert tokens[0] == 4094
        assert tokens.index(4095) == len(tokens) - 1
    assert tokenizer.decode(tokenizer("a cat").input_ids, skip_special_tokens=True) == "a cat"


def test_prompts_are_cut_and_padded_to_77() -> None:
    first, second = byte_tokenizer(4096).build(), byte_tokenizer(4096, "!").build()
    for tokenizer, pad in ((first, 4095), (second, 0)):
        short = tokenizer("a", padding="max_length", truncation=True).input_ids
        assert (len(short), short[-1]) == (77, pad)
        long = tokenizer("a " * 100, padding="max_length", truncation=True).input_ids
        assert (len(long), long[-1]) == (77, 4095)
