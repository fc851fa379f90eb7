"""The case `checker`: its judgement by hand, and a tiny run on the committed sprites."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vega_diffusion.benchmarks import checker as case
from vega_diffusion.benchmarks.checker import judge, measure, nearest
from vega_diffusion.data.scenes.checker_classes import checker_spec, class_indices
from vega_diffusion.data.scenes.scene import STYLES
from vega_diffusion.data.scenes.subjects import CAT
from vega_diffusion.data.scenes.targets import IGNORE
from vega_diffusion.errors import MissingFile
from vega_diffusion.models.checker import SceneChecker, write_checker
from vega_diffusion.models.detections import Detection, Finding

INDEX = class_indices()


def seen(noun: str, x: float, colour: str = "natural") -> Detection:
    return Detection(noun, 1.0, colour, (x - 20, 40, x + 20, 80), 1.0)


def truth(*objects: tuple[str, float, str]) -> dict[str, torch.Tensor]:
    boxes, nouns = torch.zeros(9, 4), torch.full((9,), IGNORE)
    colours = nouns.clone()
    for number, (noun, x, colour) in enumerate(objects):
        boxes[number] = torch.tensor([x - 20, 40, x + 20, 80])
        nouns[number], colours[number] = INDEX["nouns"][noun], INDEX["colours"][colour]
    style, background = torch.tensor(INDEX["styles"]["noto"]), torch.tensor(INDEX["backgrounds"]["blue"])
    return {"boxes": boxes, "nouns": nouns, "colours": colours, "style": style, "background": background}


def test_a_right_finding_is_right_in_everything() -> None:
    finding = Finding((seen("dog", 32, "red"), seen(CAT, 90)), "blue", "noto")
    found = judge(truth(("dog", 30, "red"), (CAT, 90, "natural")), finding)
    assert found == {
        "noun": [True],
        "subject": [True],
        "colour": [True],
        "count": [True],
        "style": [True],
        "background": [True],
    }


def test_every_mistake_counts_where_it_belongs() -> None:
    wanted = truth(("dog", 30, "red"), ("taxi", 90, "natural"))
    assert judge(wanted, Finding((seen("fox", 30, "red"), seen("car", 90)), "blue", "noto"))["noun"] == [False, True]
    assert judge(wanted, Finding((seen("dog", 30, "blue"), seen("taxi", 90)), "blue", "noto"))["colour"] == [False]
    assert judge(wanted, Finding((seen("dog", 30, "red"),), "red", "twemoji")) == {
        "noun": [True, False],
        "subject": [],
        "colour": [True],
        "count": [False],
        "style": [False],
        "background": [False],
    }


def test_what_has_no_target_is_not_counted() -> None:
    wanted = truth(("dog", 30, "red")) | {"style": torch.tensor(IGNORE), "background": torch.tensor(IGNORE)}
    wanted["colours"][0] = IGNORE
    found = judge(wanted, Finding((), "blue", "noto"))
    assert found == {"noun": [False], "subject": [], "colour": [], "count": [False], "style": [], "background": []}


def test_only_a_detection_near_the_box_can_be_meant() -> None:
    near, far = seen("dog", 45), seen("cat", 70)
    assert nearest((far, near), (10, 40, 50, 80)) == near
    assert nearest((far,), (10, 40, 50, 80)) is None


def test_an_untrained_checker_is_measured_and_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    monkeypatch.setattr("vega_diffusion.data.scene_checks.DRAWN_STYLES", STYLES)  # the sample lacks the held-out one
    monkeypatch.setattr(case, "BATCH", 4)
    torch.manual_seed(0)
    small = checker_spec().model_copy(update={"widths": (8, 8, 8, 8, 8), "neck_width": 8, "whole_width": 8})
    write_checker(tmp_path, SceneChecker(small))
    measured = measure(str(tmp_path), num_scenes=6)
    assert [bar.limit for bar in measured.bars] == [0.9, 0.95]
    assert not any(bar.met for bar in measured.bars)
    assert len(measured.samples["plain_count"]) == 6
    assert sum(len(measured.samples[name]) for name in ("subject_subject", "subject_noun")) >= 6
    with pytest.raises(MissingFile):
        measure(str(tmp_path / "none"), num_scenes=2)
