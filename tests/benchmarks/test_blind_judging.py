"""A hundred pictures by rule, without a word in the files; descriptions are judged like findings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tiny_evaluation import truth_of
from vega_diffusion.benchmarks.blind_judging import SHARES, chosen, described, draw, instructions, measure
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.evaluation.judgement import judge
from vega_diffusion.evaluation.renders import scene_for
from vega_diffusion.evaluation.run_folder import JudgedPicture, picture_file
from vega_diffusion.evaluation.suites import read_suite

PROMPTS = {prompt.id: prompt for prompt in read_suite("scenes", "dev").prompts}


def evaluation(folder: Path, perfect: bool) -> Path:
    """Write an evaluation whose findings are the truth (rendered), or say that nothing is there (generated)."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for prompt in PROMPTS.values():
        for seed in prompt.seeds:
            finding = truth_of(scene_for(prompt, seed))
            found = finding if perfect else type(finding)((), "none", "none")
            verdict = judge(prompt, found)
            one = JudgedPicture(
                id=prompt.id, kind=prompt.kind, unseen=prompt.unseen, seed=seed, file=picture_file(prompt, seed),
                passed=verdict.passed, reasons=verdict.reasons, finding=found,
            )  # fmt: skip
            lines.append(one.to_json())
            Image.new("RGB", (8, 8), "red").save(folder / one.file, pnginfo=None)
    (folder / "judged.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("judging")
    return draw(evaluation(home / "model", False), evaluation(home / "renders", True), home / "new")


def truth(entry: dict) -> dict:
    finding = truth_of(scene_for(PROMPTS[entry["id"]], entry["seed"]))
    objects = [{"noun": one.noun, "colour": one.colour, "box": list(one.box)} for one in finding.detections]
    return {"objects": objects, "background": finding.background}


def test_fifty_of_each_source_and_nothing_in_the_files(drawn: Path) -> None:
    key = json.loads((drawn / "key.json").read_text())
    assert sorted(key) == sorted(path.name for path in drawn.glob("*.png"))
    for source in ("generated", "rendered"):
        kinds = [entry["kind"] for entry in key.values() if entry["source"] == source]
        assert len(kinds) == 50
        assert {kind: kinds.count(kind) for kind in set(kinds)} == SHARES
    assert not any(Image.open(path).info for path in drawn.glob("*.png"))


def test_the_rule_does_not_depend_on_the_order_of_the_lines(drawn: Path) -> None:
    lines = (drawn.parent / "model" / "judged.jsonl").read_text().splitlines()
    judged = [JudgedPicture.from_json(line) for line in lines]
    assert chosen(judged, "generated") == chosen(judged[::-1], "generated")


def test_a_judge_who_sees_the_truth_agrees_with_a_checker_that_does(drawn: Path) -> None:
    key = json.loads((drawn / "key.json").read_text())
    answers = {name: truth(entry) for name, entry in key.items()}
    (drawn / "answers.json").write_text(json.dumps(answers))
    found = measure(drawn)
    assert found.summary["rendered_agreed"] == "50 of 50"
    assert found.summary["generated_agreed"] == "0 of 50"  # there the checker said that nothing is to be seen
    assert found.bars[0].measured == 0.5
    assert not found.bars[0].met
    assert sum("judge: passed" in str(text) for text in found.summary.values()) == 50


def test_what_the_judge_is_told_names_every_word_and_no_prompt() -> None:
    text = instructions()
    assert all(noun in text for noun in load_vocabulary().names)
    assert "{" in text.split("- `objects`")[0]
    assert not any(prompt.prompt in text for prompt in PROMPTS.values() if " " in prompt.prompt)


@pytest.mark.parametrize("answer", [{}, {"objects": [{"noun": "cat"}], "background": "blue"}, {"objects": 3}])
def test_an_answer_of_another_form_is_named(answer: dict) -> None:
    with pytest.raises(VegaError, match=r"answers\.json: 0a\.png"):
        described("0a.png", answer)


def test_an_evaluation_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="run vega evaluate first"):
        draw(tmp_path / "none", tmp_path / "none", tmp_path / "new")
