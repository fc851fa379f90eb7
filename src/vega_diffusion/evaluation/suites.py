"""The committed suites of prompts: which there are, reading them, and the hash that names their content.

How the prompts were made is `compose`'s matter (`scripts/make_suites.py` runs it); the files are JSON lines of
`SuitePrompt` beside this module, in `suites/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import get_args

from vega_diffusion.data.scenes.scene import PLACES
from vega_diffusion.data.scenes.splits import Combination
from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.specs.evaluation import SuiteKind, SuitePrompt

SUITES: dict[str, tuple[str, ...]] = {"scenes": ("dev", "test")}
"""Suite -> its splits: `dev` is for tuning, `test` is run once at the end of a piece of work."""


@dataclass(frozen=True)
class Suite:
    """One split of a suite.

    Attributes:
        name: As "scenes".
        split: "dev" or "test".
        prompts: In the file's order: kind by kind.
        sha256: Of the file, hexadecimal: results of different files are never compared.
        limit: Prompts of each kind that were kept, or None where it is whole.
    """

    name: str
    split: str
    prompts: tuple[SuitePrompt, ...]
    sha256: str
    limit: int | None = None

    @property
    def num_images(self) -> int:
        """Pictures of all prompts together."""
        return sum(len(prompt.seeds) for prompt in self.prompts)

    def limited(self, limit: int | None) -> Suite:
        """Return the first `limit` prompts of each kind: a quick look, no score to quote.

        Raises:
            InvalidValue: `limit` is below 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise InvalidValue("limit", limit, "1 or more", "say how many prompts of each kind to draw")
        kept = []
        for kind in get_args(SuiteKind):
            kept += [prompt for prompt in self.prompts if prompt.kind == kind][:limit]
        return replace(self, prompts=tuple(kept), limit=limit)


def suite_path(name: str, split: str) -> Path:
    """Return the file of a suite's split.

    Raises:
        InvalidValue: There is no such suite or split.
    """
    if name not in SUITES:
        raise InvalidValue("suite", name, f"one of: {', '.join(SUITES)}", "choose one of them")
    if split not in SUITES[name]:
        raise InvalidValue("split", split, f"one of: {', '.join(SUITES[name])}", "choose one of them")
    return Path(str(files("vega_diffusion.evaluation") / "suites" / f"{name}-{split}.jsonl"))


def read_suite(name: str, split: str) -> Suite:
    """Read one split of a suite.

    Raises:
        InvalidValue: There is no such suite or split.
        MissingFile: Its file is not in this installation.
        VegaError: The file is damaged.
    """
    path = suite_path(name, split)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingFile(f"{path}: cannot be read ({error.strerror}); install vega-diffusion again") from error
    prompts = tuple(SuitePrompt.from_json(line) for line in content.decode("utf-8").splitlines())
    check_prompts(path.name, prompts)
    return Suite(name, split, prompts, hashlib.sha256(content).hexdigest())


def check_prompts(name: str, prompts: Sequence[SuitePrompt]) -> None:
    """Check what drawing relies on: unique ids, and seeds that follow one another and belong to one prompt only.

    Raises:
        VegaError: One of these does not hold.
    """
    ids = [prompt.id for prompt in prompts]
    seeds = [seed for prompt in prompts for seed in prompt.seeds]
    if not ids or len(set(ids)) < len(ids) or len(set(seeds)) < len(seeds):
        raise VegaError(f"{name}: ids or seeds come twice, or it is empty; run scripts/make_suites.py again")
    for prompt in prompts:
        if prompt.seeds != tuple(range(prompt.seeds[0], prompt.seeds[0] + len(prompt.seeds))):
            raise VegaError(f"{name}: seeds of {prompt.id} do not follow one another; run scripts/make_suites.py again")


def suite_lines(prompts: Sequence[SuitePrompt]) -> str:
    """Return the content of a suite's file."""
    return "".join(f"{prompt.model_dump_json(exclude_defaults=True)}\n" for prompt in prompts)


def prompt_combinations(prompt: SuitePrompt) -> set[Combination]:
    """Return the combinations that a prompt asks for, in the sense of `scenes.splits`; its first noun names an object.

    A kind without pairs (single object, counting, plain background, style) has none: nothing of it is kept out of
    training, so "seen" and "unseen" mean nothing there and its prompts are marked as seen.
    """
    nouns = sorted(expected.nouns[0] for expected in prompt.objects)
    found: set[Combination] = set()
    if len(nouns) == 2:
        found.add(("noun-noun", nouns[0], nouns[1]))
    found |= {("noun-colour", expected.nouns[0], expected.colour) for expected in prompt.objects if expected.colour}
    if prompt.background in PLACES:
        found |= {("noun-place", noun, prompt.background) for noun in nouns}
    return found
