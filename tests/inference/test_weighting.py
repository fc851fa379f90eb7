"""The weighted prompt syntax: parsing, equality with plain text, length, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vega_diffusion import Engine, GenerateRequest
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.prompts import TextStack, encode_plain
from vega_diffusion.inference.weighting import encode_weighted, parse_weighted


@pytest.fixture(scope="module")
def stack(tiny_folder: Path) -> TextStack:
    return Components.open(str(tiny_folder), "cpu", "float32", None).text_stack()


def weights(text: str) -> list[list[tuple[str, float]]]:
    return [[(piece.text, round(piece.weight, 4)) for piece in section] for section in parse_weighted(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [[("a cat", 1.0)]]),
        ("a (cat)", [[("a", 1.0), ("cat", 1.1)]]),
        ("((cat))", [[("cat", 1.21)]]),
        ("a (red cat:1.3), Big", [[("a", 1.0), ("red cat", 1.3), (", Big", 1.0)]]),
        ("[cat] Bob", [[("cat", 0.9091), ("Bob", 1.0)]]),
        ("(a [b:c)", None),
        ("(a (b:0.5) c:2)", [[("a", 2.0), ("b", 1.0), ("c", 2.0)]]),
        (r"a \(literal\) \[one\]", [[("a (literal) [one]", 1.0)]]),
        ("scale 1:2", [[("scale 1:2", 1.0)]]),
        ("a BREAK (b BREAK c)", [[("a", 1.0)], [("b", 1.1)], [("c", 1.1)]]),
        ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
        ("( )", [[]]),
    ],
)
def test_parsing(text: str, expected: list[list[tuple[str, float]]] | None) -> None:
    if expected is None:
        with pytest.raises(InvalidValue):
            parse_weighted(text)
    else:
        assert weights(text) == expected


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\<>", codec="utf-8")).filter(lambda t: "AND" not in t))
def test_text_without_syntax_is_kept(text: str) -> None:
    words = "".join(piece.text for section in parse_weighted(text) for piece in section)
    assert "".join(words.split()) == "".join(text.replace("BREAK", "").split()) or "BREAK" in text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a AND b", "AND"),
        ("[cat:dog:0.5]", "prompt editing"),
        ("[cat|dog]", "alternation"),
        ("cat <lora:style:0.8>", "adapter tags"),
        ("(cat", "every \\( with its partner"),
        ("cat)", "every \\) with its partner"),
        ("[cat)", "partner"),
        ("(cat:9)", "0 to 4"),
        ("(cat:1.2.3)", "0 to 4"),
    ],
)
def test_what_is_not_supported_is_an_error_of_one_line(text: str, names: str) -> None:
    with pytest.raises(InvalidValue, match=names) as error:
        parse_weighted(text, "negative_prompt")
    assert str(error.value).startswith("negative_prompt")
    assert "\n" not in str(error.value)


def test_neutral_weights_equal_plain_text(stack: TextStack) -> None:
    plain, weighted = encode_plain(stack, "a cat, a dog"), encode_weighted(stack, "a cat, a dog")
    torch.testing.assert_close(weighted.prompt_embeds, plain.prompt_embeds, rtol=0, atol=1e-6)
    assert torch.equal(weighted.pooled_prompt_embeds, plain.pooled_prompt_embeds)


def test_a_raised_weight_moves_its_tokens_away_from_the_empty_prompt(stack: TextStack) -> None:
    plain, empty = encode_plain(stack, "a cat").prompt_embeds, encode_plain(stack, "").prompt_embeds
    weighted = encode_weighted(stack, "a (cat:1.5)").prompt_embeds
    # Bytes as tokens: start, a, then c, a, t.
    torch.testing.assert_close(weighted[:, :2], plain[:, :2], rtol=0, atol=1e-6)
    expected = empty[:, 2:5] + 1.5 * (plain[:, 2:5] - empty[:, 2:5])
    torch.testing.assert_close(weighted[:, 2:5], expected, rtol=1e-5, atol=1e-5)


def test_a_lowered_weight_has_an_effect(stack: TextStack) -> None:
    difference = encode_weighted(stack, "a [cat]").prompt_embeds - encode_plain(stack, "a cat").prompt_embeds
    assert float(difference.abs().max()) > 1e-3


def test_long_prompts_take_several_blocks_and_negatives_follow(tiny_folder: Path) -> None:
    engine = Engine.load(str(tiny_folder), device="cpu")
    long = GenerateRequest(
        prompt="a cat, " * 20, negative_prompt="blurry", prompt_syntax="weighted", num_steps=1, guidance_scale=3, seed=1
    )
    job = engine._job(long, {})
    prompt, guidance = job.prompt, job.guidance
    assert prompt.prompt_embeds.shape[1] == 2 * 77
    assert guidance.negative is not None
    assert guidance.negative.prompt_embeds.shape[1] == 2 * 77
    assert job.warnings == ()
    (drawn,) = engine.generate(long)
    assert drawn.image.size == (64, 64)


def test_break_starts_a_new_block(stack: TextStack) -> None:
    joined = encode_weighted(stack, "a cat BREAK a dog").prompt_embeds
    assert joined.shape[1] == 2 * 77
    torch.testing.assert_close(joined[:, 77:], encode_plain(stack, "a dog").prompt_embeds, rtol=0, atol=1e-6)
