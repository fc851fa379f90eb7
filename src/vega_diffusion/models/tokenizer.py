"""Tokenizer files in the published CLIP layout: reading, writing, and the smallest vocabulary that works offline.

transformers 5 saves a `tokenizer.json`, no `vocab.json` or `merges.txt`, and an infinite `model_max_length`; readers of
SDXL folders expect the older files, which transformers 5 still loads. Training a vocabulary is done elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import CLIPTokenizer

START = "<|startoftext|>"
END = "<|endoftext|>"
MAX_LENGTH = 77
_MERGES_HEADER = "#version: 0.2"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a CLIP tokenizer consists of.

    `pad_token` is the end token for SDXL's first tokenizer and "!" (id 0) for its second.
    """

    vocab: dict[str, int]
    merges: tuple[str, ...]
    pad_token: str = END

    @classmethod
    def of(cls, tokenizer: CLIPTokenizer) -> Self:
        """Take the files out of a loaded tokenizer."""
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = tuple(" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
        return cls(vocab=dict(model["vocab"]), merges=merges, pad_token=str(tokenizer.pad_token))

    def build(self) -> CLIPTokenizer:
        """Return the tokenizer itself, cutting and padding to 77 tokens as SDXL's do."""
        merges: Any = [tuple(merge.split(" ")) for merge in self.merges]
        return CLIPTokenizer(
            vocab=dict(self.vocab), merges=merges, pad_token=self.pad_token, model_max_length=MAX_LENGTH
        )

    def write(self, folder: Path) -> None:
        """Write the four published files into `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        by_id = dict(sorted(self.vocab.items(), key=lambda item: item[1]))
        (folder / "vocab.json").write_text(json.dumps(by_id, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join((_MERGES_HEADER, *self.merges)) + "\n", encoding="utf-8")
        for name, content in (
            ("special_tokens_map.json", self._special_tokens()),
            ("tokenizer_config.json", self._config()),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _special_tokens(self) -> dict[str, Any]:
        def entry(content: str, normalized: bool) -> dict[str, Any]:
            return {
                "content": content,
                "lstrip": False,
                "normalized": normalized,
                "rstrip": False,
                "single_word": False,
            }

        return {
            "bos_token": entry(START, True),
            "eos_token": entry(END, True),
            "pad_token": self.pad_token,
            "unk_token": entry(END, True),
        }

    def _config(self) -> dict[str, Any]:
        special = self._special_tokens()
        return {
            "add_prefix_space": False,
            "bos_token": special["bos_token"] | {"__type": "AddedToken"},
            "clean_up_tokenization_spaces": True,
            "do_lower_case": True,
            "eos_token": special["eos_token"] | {"__type": "AddedToken"},
            "errors": "replace",
            "model_max_length": MAX_LENGTH,
            "pad_token": self.pad_token,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": special["unk_token"] | {"__type": "AddedToken"},
        }


def byte_tokenizer(vocab_size: int, pad_token: str = END) -> TokenizerFiles:
    """Return a tokenizer without merges: one token a byte, the first 512 entries of CLIP's own vocabulary.

    It needs no download and its ids mean what they mean in CLIP (256 bytes, the same 256 at the end of a word, start
    and end as the two highest ids); prompts are merely cut into characters. For models with random weights and tests.

    Args:
        vocab_size: Size of the text encoder's vocabulary, at least 514.
        pad_token: Token to pad with.
    """
    letters = _byte_letters()
    vocab = {token: index for index, token in enumerate(letters + [letter + "</w>" for letter in letters])}
    vocab |= {START: vocab_size - 2, END: vocab_size - 1}
    return TokenizerFiles(vocab=vocab, merges=(), pad_token=pad_token)


def _byte_letters() -> list[str]:
    """Return the letters that byte-level BPE writes for the 256 bytes, in CLIP's order.

    Printable bytes stand for themselves and come first, the others are moved up to 256 and beyond.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + offset) for offset in range(hidden)]
