"""The checker: shapes, objects out of a hand-made grid, and a folder that notices every change."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel, VegaError
from vega_diffusion.models import checker as module
from vega_diffusion.models.checker import (
    CheckerOutput,
    SceneChecker,
    checker_digest,
    default_checker_folder,
    read_checker,
    write_checker,
)
from vega_diffusion.models.peaks import peaks
from vega_diffusion.specs.checker import CheckerSpec

TINY = CheckerSpec(
    nouns=("cat", "dog", "car"),
    colours=("natural", "red"),
    styles=("flat", "line"),
    backgrounds=("white", "grass"),
    image_px=64,
    widths=(4, 8, 8, 8, 8),
    neck_width=8,
    whole_width=8,
    groups=2,
)


@pytest.fixture
def tiny() -> SceneChecker:
    torch.manual_seed(0)
    return SceneChecker(TINY).eval()


def test_output_has_a_grid_of_cells_and_one_answer_for_the_whole(tiny: SceneChecker) -> None:
    with torch.no_grad():
        output = tiny(torch.rand(2, 3, 64, 64) * 2 - 1)
    shapes = [tuple(part.shape) for part in output]
    assert shapes == [(2, 8, 8), (2, 3, 8, 8), (2, 2, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8), (2, 2)]
    assert float(output.objectness.sigmoid().max()) < 0.1, "fresh weights see no objects"


def test_a_picture_is_judged_the_same_whoever_stands_beside_it(tiny: SceneChecker) -> None:
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    alone, together = tiny(pictures[1:2]), tiny(pictures)
    for one, all_three in zip(alone, together, strict=True):
        torch.testing.assert_close(one, all_three[1:2], atol=1e-5, rtol=1e-4)


def grid(*objects: tuple[int, int, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and boxes of objects given as row, column, score, side in px; neighbours of a peak score a little less."""
    scores, boxes = torch.zeros(8, 8), torch.zeros(4, 8, 8)
    for y, x, score, side in objects:
        for dy, dx in ((0, 0), (0, 1), (1, 0)):
            if y + dy < 8 and x + dx < 8:
                scores[y + dy, x + dx] = max(float(scores[y + dy, x + dx]), score - 0.2 * (dy + dx))
        boxes[2:, y, x] = math.log(side)
    return scores, boxes


def test_every_peak_is_one_object_with_its_box() -> None:
    scores, boxes = grid((1, 1, 0.9, 20.0), (1, 5, 0.8, 20.0), (5, 1, 0.7, 20.0), (5, 5, 0.95, 20.0), (3, 3, 0.2, 20.0))
    boxes[0, 1, 1] = 0.25
    found = peaks(scores, boxes, TINY)
    assert [(y, x) for y, x, _, _ in found] == [(5, 5), (1, 1), (1, 5), (5, 1)]
    assert found[1][2] == pytest.approx(0.9)
    assert found[1][3] == pytest.approx((14 - 10, 12 - 10, 14 + 10, 12 + 10), abs=1e-3)


@pytest.mark.parametrize(("column", "number"), [(4, 1), (5, 2)])
def test_peaks_nearer_than_a_share_of_their_size_are_one_object(column: int, number: int) -> None:
    scores, boxes = grid((2, 2, 0.9, 50.0), (2, column, 0.8, 50.0))  # 0.4 * 50 px is 2.5 cells
    assert len(peaks(scores, boxes, TINY)) == number


def test_two_equal_scores_side_by_side_are_one_object() -> None:
    scores, boxes = torch.zeros(8, 8), torch.zeros(4, 8, 8)
    scores[3, 3] = scores[3, 4] = 0.9
    boxes[2:] = math.log(30)
    assert len(peaks(scores, boxes, TINY)) == 1


def test_findings_hold_names(tiny: SceneChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    output = CheckerOutput(
        torch.full((1, 8, 8), -9.0),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 2, 8, 8),
        torch.zeros(1, 2, 8, 8),
        torch.zeros(1, 4, 8, 8),
        torch.tensor([[0.0, 1.0]]),
    )
    output.objectness[0, 4, 4] = 3.0
    output.styles[0, 1, 4, 4] = 1.0
    output.nouns[0, 1, 4, 4], output.colours[0, 1, 4, 4] = 5.0, 2.0
    output.boxes[0, 2:, 4, 4] = math.log(16)
    monkeypatch.setattr(tiny, "forward", lambda pixels: output)
    (finding,) = tiny.find(torch.zeros(1, 3, 64, 64))
    assert (finding.style, finding.background) == ("line", "grass")
    (seen,) = finding.detections
    assert (seen.noun, seen.colour, seen.centre) == ("dog", "red", (36.0, 36.0))
    assert seen.noun_score == pytest.approx(math.exp(5) / (math.exp(5) + 2))
    assert seen.score == pytest.approx(1 / (1 + math.exp(-3)))


def test_pictures_of_another_size_are_refused(tiny: SceneChecker) -> None:
    with pytest.raises(VegaError, match=r"\(B, 3, 64, 64\)"):
        tiny.find(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_written_checker_is_read_again(tiny: SceneChecker, tmp_path: Path, dtype: torch.dtype) -> None:
    sha256 = write_checker(tmp_path, tiny, dtype, {"run": "test"})
    again = read_checker(tmp_path, sha256)
    assert again.spec == TINY
    assert not again.training
    assert checker_digest(tmp_path) == sha256
    assert json.loads((tmp_path / "checker.json").read_text())["provenance"] == {"run": "test"}
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, tiny.state_dict()[name].to(dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_changed_file_is_refused(tiny: SceneChecker, tmp_path: Path, name: str) -> None:
    write_checker(tmp_path, tiny)
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableModel, match="sha256") as caught:
        read_checker(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_checker_than_the_expected_one_is_refused(tiny: SceneChecker, tmp_path: Path) -> None:
    write_checker(tmp_path, tiny)
    with pytest.raises(UnreadableModel, match="allowed: abcd"):
        read_checker(tmp_path, "abcd")


def test_weights_of_another_architecture_are_refused(tiny: SceneChecker, tmp_path: Path) -> None:
    write_checker(tmp_path, tiny)
    other = SceneChecker(TINY.model_copy(update={"nouns": ("cat",)}))
    (tmp_path / "other").mkdir()
    write_checker(tmp_path / "other", other)
    record = json.loads((tmp_path / "checker.json").read_text())
    record["sha256"]["config.json"] = json.loads((tmp_path / "other/checker.json").read_text())["sha256"]["config.json"]
    (tmp_path / "config.json").write_bytes((tmp_path / "other/config.json").read_bytes())
    (tmp_path / "checker.json").write_text(json.dumps(record))
    with pytest.raises(UnreadableModel, match="does not fit its config"):
        read_checker(tmp_path)


def test_a_missing_checker_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "files", lambda package: tmp_path)
    with pytest.raises(MissingFile, match="publish_checker"):
        default_checker_folder()
    with pytest.raises(MissingFile):
        read_checker(tmp_path / "nowhere")


def test_a_spec_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(InvalidValue, match="multiple of 32"):
        CheckerSpec.from_dict({**json.loads(TINY.to_json()), "image_px": 100})
    with pytest.raises(InvalidValue, match="groups 2"):
        CheckerSpec.from_dict({**json.loads(TINY.to_json()), "neck_width": 7})
    with pytest.raises(InvalidValue, match="different names"):
        CheckerSpec.from_dict({**json.loads(TINY.to_json()), "nouns": ["cat", "cat"]})


def test_objects_vote_for_the_style_and_without_one_the_likeliest_place_does(
    tiny: SceneChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    nouns, colours, styles, boxes = (torch.zeros(2, number, 8, 8) for number in (3, 2, 2, 4))
    output = CheckerOutput(torch.full((2, 8, 8), -9.0), nouns, colours, styles, boxes, torch.zeros(2, 2))
    output.boxes[:, 2:] = math.log(16)
    output.objectness[0, 1, 1] = output.objectness[0, 6, 6] = 3.0
    output.styles[0, 0, 1, 1], output.styles[0, 1, 6, 6] = 1.0, 2.0  # the surer vote wins
    output.objectness[1, 5, 5] = -8.0  # nothing is found
    output.styles[1, 1, 5, 5] = 1.0
    monkeypatch.setattr(tiny, "forward", lambda pixels: output)
    first, second = tiny.find(torch.zeros(2, 3, 64, 64))
    assert (len(first.detections), first.style) == (2, "line")
    assert (len(second.detections), second.style) == (0, "line")


def test_the_noun_of_a_cell_chooses_the_weights_that_tell_its_style(tiny: SceneChecker) -> None:
    width = TINY.neck_width
    grid, nouns = torch.ones(1, width, 1, 2), torch.zeros(1, len(TINY.nouns), 1, 2)
    nouns[0, 0, 0, 0] = nouns[0, 1, 0, 1] = 50.0  # two cells, surely of noun 0 and of noun 1
    weights = torch.zeros(len(TINY.nouns), len(TINY.styles), width)
    weights[0, 0], weights[1, 1] = 1.0, 2.0
    with torch.no_grad():
        before = tiny.style_of_noun.clone()
        tiny.style_of_noun.copy_(weights.flatten(1))
        styles = tiny._styles(grid, nouns)
        tiny.style_of_noun.copy_(before)
    assert styles[0, :, 0, 0].tolist() == pytest.approx([width, 0])
    assert styles[0, :, 0, 1].tolist() == pytest.approx([0, 2 * width])
