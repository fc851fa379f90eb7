"""Contact sheets hold every picture as it is, with a green tick or a red cross below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tiny_evaluation import identity, judged, prompt
from vega_diffusion.evaluation.contact_sheet import PROMPTS_PER_SHEET, draw_sheet, write_sheets
from vega_diffusion.evaluation.results import make_result

GREEN, RED = (21, 128, 61), (200, 30, 30)


def count(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(-1).sum())


def test_every_picture_is_there_with_its_mark(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    asked = [
        prompt(f"counting-{n:03d}", 10 * n, 2, prompt="three " + "very " * 20 * n + "small cats") for n in range(4)
    ]
    verdicts = [(True, True), (False, False), (True, False), (False, True)]
    rows = [(one, judged(one, *passed)) for one, passed in zip(asked, verdicts, strict=True)]
    for index, one in enumerate(picture for _, found in rows for picture in found):
        Image.new("RGB", (128, 128), (10 * index, 0, 200)).save(tmp_path / one.file)
    sheet = np.asarray(draw_sheet(tmp_path, rows, "counting", "a model"))
    for index in range(8):
        # all but the outline
        assert count(sheet, (10 * index, 0, 200)) == 126 * 126
    alone = np.asarray(draw_sheet(tmp_path, rows[:1], "counting", "a model"))
    assert count(sheet, GREEN) == 2 * count(alone, GREEN) > 40
    assert count(sheet, RED) > 40
    assert count(alone, RED) == 0


def test_a_kind_gets_as_many_sheets_as_it_needs_and_finished_ones_are_kept(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    asked = [prompt(f"colours-{n:03d}", n, 1) for n in range(PROMPTS_PER_SHEET + 1)] + [prompt("style-000", 99, 1)]
    found = [picture for one in asked for picture in judged(one, True)]
    for one in found:
        Image.new("RGB", (128, 128)).save(tmp_path / one.file)
    about = {"run": "r", "commit": None, "finished": "2026-01-01", "seconds": 1.0}
    result = make_result(asked, found, found, identity(), **about)  # type: ignore[arg-type]
    paths = write_sheets(tmp_path, asked, found, result)
    assert [path.name for path in paths] == ["colours-1.png", "colours-2.png", "style-1.png"]
    paths[0].write_bytes(b"mine")
    assert write_sheets(tmp_path, asked, found, result) == paths
    assert paths[0].read_bytes() == b"mine"
