"""Case `blind-judging`: does someone who sees only pictures come to the checker's verdicts?

`draw` takes fifty generated and fifty rendered pictures out of two finished evaluations of the dev split, by a fixed
rule, and writes their pixels under random names, with a sheet of instructions and the key. The judge describes every
picture in the words of the instructions and never sees a prompt; `measure` holds the descriptions against the prompts
by the same rules as the checker's findings, and counts equal verdicts.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.blind_naming import ANSWERS, KEY, read_answers
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.errors import MissingFile, VegaError

if TYPE_CHECKING:
    from vega_diffusion.evaluation.run_folder import JudgedPicture
    from vega_diffusion.models.detections import Finding

NEEDED = 0.9
INSTRUCTIONS = "instructions.md"
SOURCES = ("generated", "rendered")
# Pictures of each source by kind of prompt; styles have no names that somebody could know who has not learnt them.
SHARES = {
    "single_object": 7,
    "two_objects": 7,
    "counting": 7,
    "colours": 7,
    "position": 7,
    "attribute_binding": 7,
    "background": 3,
    "place": 3,
    "natural": 2,
}
_TEXT = """# Describe each picture

You see small computer-drawn scenes: one to four drawings (sometimes none that can be told) on a plain or drawn
background. Look at every picture by itself and write what you see, not what somebody may have meant. Answer in one
JSON file:

    {{
      "NAME.png": {{
        "objects": [{{"noun": "dog", "colour": "natural", "box": [10, 40, 60, 90]}}],
        "background": "blue"
      }}
    }}

- `objects`: every separate thing, the clearest first. `noun` is the word from the list below that fits best, or
  "unknown" where none does or the thing cannot be told. What belongs to a background (sky, sand, grass, stars, snow,
  waves) is no object.
- `colour`: one of {colours}: the colour that the thing has been
  given as a whole ("a red dog"), or "natural" where it has its ordinary or several colours.
- `box`: left, top, right, bottom of the thing in pixels of a 128 x 128 picture, as near as you can tell.
- `background`: one of {backgrounds}.

Nouns: {nouns}.
"""


def draw(generated: Path, rendered: Path, folder: Path) -> Path:
    """Write the pictures, the instructions and the key.

    Args:
        generated: Folder of a finished evaluation of a model on the dev split.
        rendered: Folder of the real renders of the same prompts (the ceiling's).
        folder: Where to write; nothing may be there yet.

    Raises:
        MissingFile: An evaluation is not there, or not finished.
        VegaError: The folder exists or cannot be written.
    """
    from PIL import Image

    key: dict[str, dict[str, Any]] = {}
    try:
        folder.mkdir(parents=True)
        for source, run in zip(SOURCES, (generated, rendered), strict=True):
            for picture in chosen(_judged(run), source):
                name = f"{secrets.token_hex(4)}.png"
                with Image.open(run / picture.file) as image:
                    image.convert("RGB").save(folder / name)  # pixels alone: no prompt travels in the file
                key[name] = {"source": source, **picture.model_dump(mode="json", exclude={"file", "unseen"})}
        key = dict(sorted(key.items()))
        (folder / KEY).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
        (folder / INSTRUCTIONS).write_text(instructions(), encoding="utf-8")
    except OSError as error:
        raise VegaError(f"{folder}: cannot be written ({error}); give a folder that is not there yet") from error
    return folder


def instructions() -> str:
    """Return what the judge is told: the form of an answer, and the words that it may use."""
    from vega_diffusion.data.scenes.scene import BACKGROUNDS, HUES, PLACES
    from vega_diffusion.data.scenes.vocabulary import load_vocabulary

    return _TEXT.format(
        colours=", ".join(["natural", *HUES]),
        backgrounds=", ".join([*BACKGROUNDS, *PLACES]),
        nouns=", ".join(load_vocabulary().names),
    )


def chosen(judged: Sequence[JudgedPicture], source: str) -> list[JudgedPicture]:
    """Return the pictures of a source that are judged: of every kind the first by hash of prompt and seed."""
    taken = []
    for kind, share in SHARES.items():
        of_kind = [one for one in judged if one.kind == kind]
        of_kind.sort(key=lambda one: hashlib.sha256(f"blind judging/{source}/{one.id}/{one.seed}".encode()).hexdigest())
        taken += of_kind[:share]
    return taken


def measure(folder: Path) -> Measurement:
    """Count where a judge's descriptions and the checker's findings give the same verdict.

    Args:
        folder: What `scripts/draw_judging.py` wrote, with `answers.json` (file name -> description) added.

    Raises:
        MissingFile: The key or the answers are not there.
        VegaError: A picture has no answer, or one that does not follow the instructions.
    """
    from vega_diffusion.evaluation.judgement import judge
    from vega_diffusion.evaluation.suites import read_suite

    key, answers = read_answers(folder)
    prompts = {prompt.id: prompt for prompt in read_suite("scenes", "dev").prompts}
    agreed: dict[str, list[float]] = defaultdict(list)
    said: dict[str, float | int | str] = {}
    for name, entry in key.items():
        verdict = judge(prompts[entry["id"]], described(name, answers[name]))
        same = verdict.passed == entry["passed"]
        for group in ("all", entry["source"], entry["kind"]):
            agreed[group].append(float(same))
        if not same:
            reasons = "; ".join(entry["reasons"]) or "passed"
            said[f"{name}, {entry['source']}, {entry['id']}"] = (
                f"checker: {reasons}; judge: {'; '.join(verdict.reasons) or 'passed'}"
            )
    share = sum(agreed["all"]) / len(agreed["all"])
    return Measurement(
        samples=dict(agreed),
        summary={**{f"{group}_agreed": f"{sum(same):.0f} of {len(same)}" for group, same in agreed.items()}, **said},
        bars=(
            Bar(
                what="checker and blind judge agree",
                measured=round(share, 4),
                unit="of 1",
                limit=NEEDED,
                better="higher",
            ),
        ),
        protocol="fifty generated and fifty rendered pictures of the dev split by rule, random file names; the judge "
        "sees pictures and a list of words, no prompt; descriptions and findings are held against the prompt by the "
        "same rules",
    )


def described(name: str, answer: Mapping[str, Any]) -> Finding:
    """Return a judge's description in the form of a finding; objects are as sure as their order says.

    Raises:
        VegaError: It does not follow the instructions.
    """
    from vega_diffusion.models.detections import Detection, Finding

    try:
        found = [
            Detection(str(one["noun"]), 1.0, str(one["colour"]), _box(one["box"]), 1.0 - 0.01 * rank)
            for rank, one in enumerate(answer["objects"])
        ]
        return Finding(tuple(found), str(answer["background"]), "")
    except (KeyError, TypeError, ValueError) as error:
        raise VegaError(f"{ANSWERS}: {name}: {error!r}; write it as {INSTRUCTIONS} says") from error


def _box(edges: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, edges)
    return x0, y0, x1, y1


def _judged(run: Path) -> list[JudgedPicture]:
    from vega_diffusion.evaluation.run_folder import JudgedPicture

    try:
        lines = (run / "judged.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MissingFile(f"{run}: no evaluation there ({error.strerror}); run vega evaluate first") from error
    return [JudgedPicture.from_json(line) for line in lines]
