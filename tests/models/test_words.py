"""A token table of which a few rows learn: the others, and all that is said with them alone, stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.words import WordTable, learn_words, learns_words, with_plain_table
from vega_diffusion.specs.presets import preset
from vega_diffusion.training.student import Student

TOKENS = (7, 11, 7)


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return build_text_encoder(preset("vega-mini").text_encoder)


def test_a_table_of_words_encodes_as_the_plain_one_does(encoder: nn.Module):
    ids = torch.tensor([[3, 7, 11, 5], [1, 2, 3, 4]])
    before = encoder(ids).last_hidden_state
    learn_words(encoder, TOKENS)
    assert learns_words(encoder)
    assert torch.equal(encoder(ids).last_hidden_state, before)


def test_only_the_words_learn_and_what_is_said_without_them_stays_to_the_bit(encoder: nn.Module):
    plain, told = torch.tensor([[3, 4, 5]]), torch.tensor([[3, 7, 5]])
    before, first = encoder(plain).last_hidden_state, encoder(told).last_hidden_state.detach()
    table = encoder.state_dict()
    learn_words(encoder, TOKENS)
    student = Student({"text_encoder": encoder})
    learning = [(name, value) for name, value in student.named_parameters() if value.requires_grad]
    assert [name.rpartition(".")[2] for name, _ in learning] == ["words"]
    optimizer = torch.optim.AdamW([value for _, value in learning], lr=0.1, weight_decay=0.1)
    encoder(told).last_hidden_state[..., 0].sum().backward()
    optimizer.step()
    assert torch.equal(encoder(plain).last_hidden_state, before)
    assert not torch.allclose(encoder(told).last_hidden_state, first, atol=1e-3)
    changed = with_plain_table(encoder).state_dict()
    assert changed.keys() == table.keys()
    (name,) = [name for name in table if not torch.equal(table[name], changed[name])]
    assert name.endswith("token_embedding.weight")
    rows = (table[name] != changed[name]).any(1).nonzero().flatten().tolist()
    assert rows == [7, 11]  # the second by decay alone


def test_a_plain_table_encodes_as_that_of_words(encoder: nn.Module):
    assert with_plain_table(encoder) is encoder
    learn_words(encoder, TOKENS)
    (table,) = [child for child in encoder.modules() if isinstance(child, WordTable)]
    nn.init.ones_(table.words)
    ids = torch.tensor([[3, 7, 11, 5]])
    plain = with_plain_table(encoder)
    assert not learns_words(plain)
    assert learns_words(encoder)
    assert torch.equal(plain(ids).last_hidden_state, encoder(ids).last_hidden_state)
