"""Prompts with weights and of any length: the syntax of AUTOMATIC1111's web UI, encoded by compel.

The syntax is parsed here, since compel's own grammar is another one (it reads quotes, plus signs and `.and()` too);
compel turns the weighted pieces into embeddings. Plain prompts never come here: `prompts.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vega_diffusion.errors import InvalidValue, Unavailable
from vega_diffusion.inference.prompts import EncodedText, TextStack, encode_plain

_STEP = 1.1  # of one pair of brackets without a number
_MAX_WEIGHT = 4.0
_SYMBOLS = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*([+-]?[\d.]+)\s*\)|\bBREAK\b|[^\\()\[\]:B]+|[\\:B]")
_UNSUPPORTED: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:[^>]*>"), "adapter tags", "drop the tag"),
    (re.compile(r"\bAND\b"), "AND", "write and, or a comma"),
    (re.compile(r"(?<!\\)\[[^\[\]]*:[^\[\]]*\]"), "prompt editing [a:b:0.5]", "write \\[ for a literal bracket"),
    (re.compile(r"(?<!\\)\[[^\[\]]*\|[^\[\]]*\]"), "alternation [a|b]", "write \\[ for a literal bracket"),
)


@dataclass(frozen=True)
class Piece:
    """Some text and its weight; 1 is neutral."""

    text: str
    weight: float


def parse_weighted(text: str, field: str = "prompt") -> list[list[Piece]]:
    """Split a prompt into the sections between `BREAK`s, each a list of weighted pieces.

    `(x)` is 1.1, `(x:1.3)` is 1.3, `[x]` is 1 / 1.1; brackets nest and multiply; a backslash makes one literal.

    Args:
        text: The prompt.
        field: What an error calls it.

    Raises:
        InvalidValue: A bracket is not closed, a weight is out of range, or the syntax is one that is not supported.
    """
    for pattern, name, remedy in _UNSUPPORTED:
        found = pattern.search(text)
        if found:
            raise InvalidValue(field, found.group(0), f"weighted syntax without {name}", f"{remedy}, or use plain")
    sections: list[list[Piece]] = [[]]
    # Of each open bracket: its character, the section and the piece where it began.
    opened: list[tuple[str, int, int]] = []
    for match in _SYMBOLS.finditer(text):
        symbol, number = match.group(0), match.group(1)
        if symbol in ("(", "["):
            opened.append((symbol, len(sections) - 1, len(sections[-1])))
        elif symbol in (")", "]") or number is not None:
            if number is not None and not (opened and opened[-1][0] == "("):
                sections[-1].append(Piece(symbol[:-1], 1.0))
                symbol, number = ")", None
            _close(text, field, sections, opened, symbol[-1], number)
        elif symbol == "BREAK":
            sections.append([])
        else:
            is_escape = len(symbol) == 2 and symbol[0] == "\\"
            sections[-1].append(Piece(symbol[1] if is_escape else symbol, 1.0))
    if opened:
        raise _unbalanced(text, field, opened[-1][0])
    merged = [_merged(section) for section in sections]
    return [section for section in merged if section] or [[]]


def _close(
    text: str,
    field: str,
    sections: list[list[Piece]],
    opened: list[tuple[str, int, int]],
    bracket: str,
    number: str | None,
) -> None:
    """Multiply the weights of everything since the matching bracket."""
    if not opened or opened[-1][0] != {")": "(", "]": "["}[bracket]:
        raise _unbalanced(text, field, bracket)
    _, first_section, first_piece = opened.pop()
    factor = (_STEP if bracket == ")" else 1 / _STEP) if number is None else _weight(field, number)
    for index in range(first_section, len(sections)):
        start = first_piece if index == first_section else 0
        pieces = sections[index]
        pieces[start:] = [Piece(piece.text, piece.weight * factor) for piece in pieces[start:]]


def _weight(field: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= _MAX_WEIGHT:
        raise InvalidValue(f"{field} weight", number, f"a number from 0 to {_MAX_WEIGHT:g}", "0.5 to 1.5 is usual")
    return weight


def _unbalanced(text: str, field: str, bracket: str) -> InvalidValue:
    allowed = f"every {bracket} with its partner"
    return InvalidValue(field, text, allowed, f"balance it, write \\{bracket} for a literal one, or use plain")


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Join neighbours of equal weight; leave out what is only white space."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].weight == piece.weight:
            joined[-1] = Piece(joined[-1].text + piece.text, piece.weight)
        else:
            joined.append(piece)
    return [Piece(piece.text.strip(), piece.weight) for piece in joined if piece.text.strip()]


@torch.inference_mode()
def encode_weighted(stack: TextStack, text: str, field: str = "prompt") -> EncodedText:
    """Encode a weighted prompt of any length; longer ones take several blocks of 77 tokens.

    The pooled output is that of the text without weights, its first 77 tokens.

    Args:
        stack: The model's tokenizers and encoders.
        text: The prompt.
        field: What an error calls it.

    Raises:
        InvalidValue: The syntax cannot be read.
        Unavailable: compel is not installed.
    """
    sections = parse_weighted(text, field)
    providers = [_provider(stack, index) for index in range(len(stack.encoders))]
    rows = [torch.cat([_aligned(provider, section) for provider in providers], dim=-1) for section in sections]
    words = " ".join(piece.text for section in sections for piece in section)
    return EncodedText(torch.cat(rows, dim=1), encode_plain(stack, words, field).pooled_prompt_embeds)


def _provider(stack: TextStack, index: int) -> Any:
    """Return compel's encoder around one of ours."""
    try:
        from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType, SplitLongTextMode
    except ImportError as error:
        raise Unavailable(
            'prompt_syntax: weighted needs compel; run pip install "vega-diffusion[prompts]", or use plain'
        ) from error
    encoder = stack.encoders[index]
    return EmbeddingsProvider(
        tokenizer=stack.tokenizers[index],
        text_encoder=encoder,
        truncate=False,
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        # compel prefers the last full stop, however early it stands; a comma wastes fewer tokens.
        split_long_text_mode=SplitLongTextMode.PHRASES,
        model_max_length=stack.max_length(index),
        device=str(encoder.device),
    )


def _aligned(provider: Any, section: list[Piece]) -> Tensor:
    """Return `[1, n * 77, D]` of one section."""
    return provider.get_embeddings_for_weighted_prompt_fragments(
        text_batch=[[piece.text for piece in section]],
        fragment_weights_batch=[[piece.weight for piece in section]],
        device=provider.device,
    )


def padded(text: EncodedText, length: int, empty: EncodedText) -> EncodedText:
    """Return the text lengthened to `length` tokens by encoded empty prompts.

    Guidance needs the prompt and its negative at the same length.
    """
    rows = [text.prompt_embeds]
    while sum(row.shape[1] for row in rows) < length:
        rows.append(empty.prompt_embeds)
    return EncodedText(torch.cat(rows, dim=1), text.pooled_prompt_embeds, text.warnings)
