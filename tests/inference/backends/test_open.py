"""Whether int8 is there: taken without NNCF, and never lost without a word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tiny_backends import TINY_RULE
from vega_diffusion.inference.backends import openvino_graphs, openvino_runtime
from vega_diffusion.inference.backends.open import CALIBRATED, Opening, is_calibrated
from vega_diffusion.inference.backends.openvino_graphs import Part, identify
from vega_diffusion.inference.backends.openvino_runtime import RunSettings, cpu_features
from vega_diffusion.inference.backends.store import Store

pytest.importorskip("openvino")
pytest.importorskip("nncf")
LOST = "calibrated by other versions, or only in part; run vega calibrate again"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def opening(tmp_path: Path, lines: list[str]) -> Opening:
    return Opening(say=lines.append, home=tmp_path, rule=TINY_RULE)


def write(folder: Path) -> None:
    (folder / "full.bin").write_text("numbers")


@pytest.fixture
def kept(opening: Opening) -> dict[str, Path]:
    """Entries under the names of calibrated networks; looking for them opens none."""
    found = {}
    for what in CALIBRATED:
        detail, rule = ({"branch": 0}, opening.rule) if what == "unet" else ({}, opening.decoder_rule)
        identity = identify(Part(what, "mine", (), detail=detail), RunSettings("int8", 1, cpu_features()), rule)
        store = Store(opening.say, opening.home)
        found[what] = store.make(identity, write)
    return found


def test_what_was_made_is_there_and_what_nobody_made_is_no_word_worth(
    opening: Opening, kept: dict[str, Path], lines: list[str]
) -> None:
    assert is_calibrated("mine", opening)
    assert not is_calibrated("others", opening)
    assert lines == []


def test_damage_is_said_and_so_is_what_it_leaves(opening: Opening, kept: dict[str, Path], lines: list[str]) -> None:
    (kept["unet"] / "full.bin").write_text("other numbers")
    assert not is_calibrated("mine", opening)
    assert lines == [f"{kept['unet']}: a kept file is damaged (full.bin has changed); run vega calibrate again"]
    assert not is_calibrated("mine", opening)
    assert lines[1:] == [LOST]


def test_other_versions_and_rules_are_said(
    opening: Opening, kept: dict[str, Path], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_calibrated("mine", replace(opening, rule=replace(TINY_RULE, max_error=0.01)))
    monkeypatch.setattr(openvino_graphs, "version", lambda name: "0.0")
    assert not is_calibrated("mine", opening)
    assert lines == [LOST, LOST]


def test_without_openvino_its_own_line_is_enough(
    opening: Opening, kept: dict[str, Path], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_runtime, "find_spec", lambda name: None)
    assert not is_calibrated("mine", opening)
    assert lines == []


def test_what_is_kept_needs_no_nncf(
    opening: Opening, kept: dict[str, Path], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_graphs, "_nncf_version", lambda: "none")
    assert is_calibrated("mine", opening)
    assert not is_calibrated("mine", replace(opening, rule=replace(TINY_RULE, max_error=0.01)))
    assert lines == [LOST]
