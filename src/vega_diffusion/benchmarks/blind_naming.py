"""Case `blind-naming`: does someone who sees only the pictures name what the prompts asked for?

`draw` writes ten pictures of one object each under random names, with nothing in the files but pixels, and the key
beside them. Which objects, seeds and file names they get follows from fixed rules, so that nobody can choose. The
judge's answers, one line a picture, are then scored by `measure` as they stand.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import MissingFile, VegaError

if TYPE_CHECKING:
    from vega_diffusion.data.scenes.vocabulary import Noun

PICTURES = 10
NEEDED = 7
KEY, ANSWERS = "key.json", "answers.json"


def objects() -> list[Noun]:
    """Return the objects, one a seed: of those that every training style draws, the first ten by hash of the name."""
    from vega_diffusion.data.scenes.scene import STYLES
    from vega_diffusion.data.scenes.vocabulary import load_vocabulary

    nouns = [noun for noun in load_vocabulary().nouns.values() if set(STYLES) <= set(noun.styles) and not noun.person]
    nouns.sort(key=lambda noun: hashlib.sha256(f"blind judging/{noun.name}".encode()).hexdigest())
    return nouns[:PICTURES]


def draw(model: str, folder: Path) -> Path:
    """Write the pictures and the key; object number n has seed n and the prompt "a NOUN".

    Args:
        model: A name or a folder.
        folder: Where to write; nothing may be there yet.

    Raises:
        VegaError: The folder exists or cannot be written, or the model cannot be read.
    """
    from vega_diffusion import Engine, GenerateRequest

    engine = Engine.load(model)
    try:
        folder.mkdir(parents=True)
        key = {}
        for seed, noun in enumerate(objects()):
            form = noun.forms[0]
            prompt = f"{form.article} {form.text}".strip()
            name = f"{secrets.token_hex(4)}.png"
            engine.generate(GenerateRequest(prompt=prompt, seed=seed))[0].image.save(folder / name)
            key[name] = {"noun": noun.name, "prompt": prompt, "seed": seed}
        (folder / KEY).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VegaError(
            f"{folder}: cannot be written ({error.strerror}); give a folder that is not there yet"
        ) from error
    return folder


def names_it(answer: str, noun: Noun) -> bool:
    """Return whether an answer holds one of the noun's words, as the vocabulary lists them, singular or plural."""
    said = " ".join(re.findall(r"[a-z0-9'-]+", answer.lower()))
    words = [text.lower() for form in noun.forms for text in (form.text, form.plural) if text]
    return any(re.search(rf"(?<![\w-]){re.escape(text)}(?![\w-])", said) for text in words)


def measure(folder: Path) -> Measurement:
    """Score a judge's answers.

    Args:
        folder: What `scripts/draw_blind.py` wrote, with `answers.json` (file name -> answer) added.

    Raises:
        MissingFile: The key or the answers are not there.
        VegaError: A picture has no answer.
    """
    from vega_diffusion.data.scenes.vocabulary import load_vocabulary

    key, answers = read_answers(folder)
    entries: Sequence[tuple[str, dict]] = sorted(key.items(), key=lambda item: item[1]["seed"])
    right = [names_it(answers[name], load_vocabulary().noun(entry["noun"])) for name, entry in entries]
    said = {f"seed {entry['seed']}, {entry['noun']}": answers[name] for name, entry in entries}
    return Measurement(
        samples={"named": [float(one) for one in right]},
        summary={"named": sum(right), "pictures": len(right), **said},
        bars=(Bar(what="objects named blindly", measured=sum(right), unit="of 10", limit=NEEDED, better="higher"),),
        seeds=tuple(entry["seed"] for _, entry in entries),
        protocol="one object a picture, seeds by rule, random file names; the judge sees pictures and no prompt; "
        "an answer is right where it holds one of the noun's words in the vocabulary",
    )


def read_answers(folder: Path) -> tuple[dict, dict]:
    """Return key and answers, both by file name.

    Raises:
        MissingFile: One of them is not there.
        VegaError: A picture has no answer.
    """
    key, answers = _read(folder / KEY), _read(folder / ANSWERS)
    unanswered = sorted(key.keys() - answers.keys())
    if unanswered:
        raise VegaError(f"{folder / ANSWERS}: no answer for {', '.join(unanswered)}; every picture needs one")
    return key, answers


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingFile(f"{path}: cannot be read ({error}); see scripts/draw_blind.py") from error
