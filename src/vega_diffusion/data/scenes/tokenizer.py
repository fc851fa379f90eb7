"""The mini family's tokenizer: CLIP's own format with a small vocabulary trained on our captions.

`tokenizer/` beside this module holds the result (`vocab.json`, `merges.txt`, configuration), which transformers'
`CLIPTokenizer` loads. Bytes are the alphabet, so every text can be encoded; words end in `</w>` as in CLIP.
`python -m vega_diffusion.data.scenes.tokenizer` trains it anew; the result is the same each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vega_diffusion.data.scenes.captions import caption
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.vocabulary import load_vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

VOCABULARY_SIZE = 4096
MODEL_MAX_LENGTH = 77
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PAD_2 = "!"
"""What SDXL's second tokenizer pads with (id 0); the first pads with `EOS`."""

_SEED = 20240
_CAPTIONS = 60_000
_WORD_WEIGHT = 6
_NOUN_WEIGHT = 400


def tokenizer_folder() -> Path:
    """Return the folder of the trained tokenizer in the package."""
    return Path(str(files("vega_diffusion.data.scenes") / "tokenizer"))


def load_tokenizer(second: bool = False) -> CLIPTokenizer:
    """Return the tokenizer of the first text encoder, or of the second (which pads as SDXL's second does)."""
    from transformers import CLIPTokenizer

    pad = PAD_2 if second else EOS
    return CLIPTokenizer.from_pretrained(str(tokenizer_folder()), pad_token=pad)


def write_tokenizer(folder: Path, *, second: bool = False) -> None:
    """Write the published layout of a tokenizer: `vocab.json`, `merges.txt`, configuration, special tokens.

    Args:
        folder: Is created; files of the same names are replaced.
        second: Write the configuration of SDXL's `tokenizer_2` (padding with "!") instead of `tokenizer`.
    """
    source = tokenizer_folder()
    _write(folder, (source / "vocab.json").read_bytes(), (source / "merges.txt").read_bytes(), second)


def train_tokenizer() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train byte-level BPE with CLIP's normaliser, word splitting and `</w>`.

    Returns:
        (token -> id, merges in order of rank). Ids: 256 bytes ("!" is 0), 256 bytes that end a word, the merges,
        then `BOS` and `EOS`, which has the highest id (CLIP pools at the highest id).
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    alphabet = byte_alphabet()
    merges_wanted = VOCABULARY_SIZE - 2 * len(alphabet) - 2
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        # More than is needed: the trainer counts its own alphabet, and only the merges are taken from it.
        vocab_size=VOCABULARY_SIZE + 512,
        initial_alphabet=alphabet,
        # Known beforehand, so that ids and with them the order of equally frequent pairs are the same each time.
        special_tokens=[f"{byte}</w>" for byte in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(), trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in learned][:merges_wanted]
    merges = [(first, second) for first, second in pairs]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges), BOS, EOS]
    ids: dict[str, int] = {}
    for token in tokens:
        ids.setdefault(token, len(ids))
    if len(ids) != VOCABULARY_SIZE:
        raise RuntimeError(f"the corpus gives {len(ids)} tokens, not {VOCABULARY_SIZE}: enlarge the corpus")
    return ids, merges


def byte_alphabet() -> list[str]:
    """Return the 256 printable stand-ins for bytes, in CLIP's order: "!" first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*(chr(byte) for byte in printable), *(chr(256 + number) for number in range(len(others)))]


def _corpus() -> Iterator[str]:
    """Captions of training scenes, every noun in all its forms, and common English words."""
    for position in range(_CAPTIONS):
        yield caption(sample_scene(_SEED, position), _SEED, position)
    for noun in load_vocabulary().nouns.values():
        for form in noun.forms:
            yield f"{form.text} {form.plural} " * _NOUN_WEIGHT
    words = (files("vega_diffusion.data.scenes") / "english_words.txt").read_text(encoding="utf-8").split()
    for word in words:
        yield f"{word} " * _WORD_WEIGHT


def _write(folder: Path, vocabulary: bytes, merges: bytes, second: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pad = PAD_2 if second else EOS

    def token(text: str) -> dict[str, Any]:
        return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    configuration = {
        "add_prefix_space": False,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": True,
        "eos_token": EOS,
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": EOS,
    }
    special = {"bos_token": token(BOS), "eos_token": token(EOS), "pad_token": pad, "unk_token": token(EOS)}
    (folder / "vocab.json").write_bytes(vocabulary)
    (folder / "merges.txt").write_bytes(merges)
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the tokenizer and write it into the package."""
    ids, merges = train_tokenizer()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    _write(
        Path(__file__).with_name("tokenizer"),
        (json.dumps(ids, ensure_ascii=False) + "\n").encode(),
        ("\n".join(lines) + "\n").encode(),
        second=False,
    )


if __name__ == "__main__":
    main()
