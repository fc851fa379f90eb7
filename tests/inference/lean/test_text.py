"""Token ids without transformers are transformers', for any text, and so is the part that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vega_diffusion.inference.lean.text import LeanTokenizer, TokenizerSpec
from vega_diffusion.models.checkpoint import load_tokenizer
from vega_diffusion.models.find import resolve_model
from vega_diffusion.models.layout import TOKENIZERS

LIMIT = 77
WORDS = st.lists(
    st.sampled_from(["a", "cat", "Pizza,", "<|endoftext|>", "(red:1.2)", "naïve", "猫", "  ", "!"]), max_size=120
)


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LeanTokenizer, Any]:
    theirs: Any = load_tokenizer(resolve_model("vega-mini"), request.param)
    theirs("a", padding="max_length", max_length=5, truncation=True)  # leaves its settings in the tokenizer
    path: Path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    path.write_text(theirs.backend_tokenizer.to_str(), encoding="utf-8")
    spec = TokenizerSpec(limit=LIMIT, pad_id=theirs.pad_token_id, end_id=theirs.eos_token_id)
    return LeanTokenizer(path, spec), theirs


@settings(max_examples=80, deadline=None)
@given(text=st.one_of(st.text(max_size=300), WORDS.map(" ".join)))
def test_ids_and_cuts_of_any_text(pair: tuple[LeanTokenizer, Any], text: str) -> None:
    ours, theirs = pair
    expected = theirs(text, padding="max_length", max_length=LIMIT, truncation=True, return_tensors="np").input_ids
    ids = ours.ids(text)
    assert (ids.shape, ids.dtype) == ((1, LIMIT), numpy.int64)
    numpy.testing.assert_array_equal(ids, expected)
    whole = theirs(text).input_ids
    assert ours.cut(text) == (theirs.decode(whole[LIMIT - 1 : -1]) if len(whole) > LIMIT else None)
