"""Every filter removes what it says and nothing else, and the report says of each what it removed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vega_diffusion.cli.main import main
from vega_diffusion.data.curation import curate
from vega_diffusion.data.near_duplicates import MOST_BITS, first_alike, look_hash
from vega_diffusion.data.picture_folder import FolderPictures
from vega_diffusion.data.picture_index import PictureIndex, index_pictures
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.curation import CurationSpec
from vega_diffusion.specs.data import ImageLatentsSpec


def drawing(number: int, size: tuple[int, int] = (200, 160)) -> Image.Image:
    """A picture of blots, another one for every number."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 255, 3)))
    for _ in range(6):
        x, y, r = (int(rng.integers(least, most)) for least, most in ((0, size[0]), (0, size[1]), (20, 60)))
        ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), tuple(int(v) for v in rng.integers(0, 255, 3)))
    return picture


ROWS = {
    "a.png": {"text": "a red apple on a green table", "pwatermark": 0.1, "punsafe": False, "license": "CC0-1.0"},
    "b.png": {"text": "the same red apple once more", "pwatermark": 0.1, "punsafe": False, "license": "CC0-1.0"},
    "c.jpg": {"text": "a smaller photo of that apple", "pwatermark": 0.2, "punsafe": False, "license": "CC-BY-4.0"},
    "d.png": {"text": "ein Haus neben einem großen Baum", "pwatermark": 0.9, "punsafe": False, "license": "CC0-1.0"},
    "e.png": {"text": "dog", "pwatermark": None, "punsafe": True, "license": "CC0-1.0"},
    "f.png": {"text": "a very long and narrow picture", "pwatermark": 0.0, "punsafe": False},
    "g.png": {"text": "a tiny picture of something", "pwatermark": 0.0, "punsafe": False},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawing(1).save(folder / "a.png")
    drawing(1).save(folder / "b.png")
    drawing(1).resize((150, 120)).save(folder / "c.jpg", quality=80)
    drawing(2).save(folder / "d.png")
    drawing(3).save(folder / "e.png")
    drawing(4, (400, 100)).save(folder / "f.png")
    drawing(5, (30, 20)).save(folder / "g.png")
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [{"file_name": name, "url": f"http://host-{name[0]}.org/{name}", **row} for name, row in ROWS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture
def index(folder: Path) -> PictureIndex:
    return index_pictures(FolderPictures(folder))


@pytest.mark.parametrize(
    ("filters", "removed"),
    [
        ({}, {}),
        ({"min_size_px": 21}, {"smaller than 21 px": ["g.png"]}),
        ({"min_size_px": 20}, {}),
        ({"max_aspect": 2.0}, {"longer than 2 : 1": ["f.png"]}),
        ({"max_aspect": 4.0}, {}),
        ({"duplicates": True}, {"the same file as another": ["b.png"]}),
        ({"near_duplicate_bits": 3}, {"looks like another": ["b.png", "c.jpg"]}),
        (
            {"duplicates": True, "near_duplicate_bits": 3},
            {"the same file as another": ["b.png"], "looks like another": ["c.jpg"]},
        ),
        ({"max_watermark": 0.5}, {"pwatermark above 0.5": ["d.png"], "without a number in pwatermark": ["e.png"]}),
        ({"max_unsafe": 0.5}, {"punsafe above 0.5": ["e.png"]}),
        ({"min_caption_words": 2}, {"caption of fewer than 2 words": ["e.png"]}),
        ({"max_caption_words": 6}, {"caption of more than 6 words": ["a.png"]}),
        ({"languages": ["en"]}, {"caption not in en": ["d.png"]}),
        (
            {"columns": {"license": ["CC0-1.0", "CC-BY-4.0"]}},
            {"license other than CC0-1.0, CC-BY-4.0": ["f.png", "g.png"]},
        ),
        ({"columns": {"punsafe": [False]}}, {"punsafe other than False": ["e.png"]}),
    ],
)
def test_each_filter_removes_what_it_names(index: PictureIndex, filters: dict, removed: dict):
    if "languages" in filters:
        pytest.importorskip("py3langid")
    kept, report = curate(index, CurationSpec.from_dict(filters))
    assert {why: list(names) for why, names in report.left_out.items()} == {"unreadable": ["broken.png"], **removed}
    gone = {name for names in removed.values() for name in names}
    assert [picture.name for picture in kept.pictures] == [name for name in ROWS if name not in gone]
    assert (report.found, report.kept) == (8, 7 - len(gone))
    assert kept.left_out == report.left_out


def test_a_score_that_is_no_number_is_none(index: PictureIndex):
    unknown = [replace(one, facts={"pwatermark": float("nan")}) for one in index.pictures[:1]]
    kept, report = curate(replace(index, pictures=(*unknown, *index.pictures[1:])), CurationSpec(max_watermark=0.95))
    assert report.left_out["without a number in pwatermark"] == ("a.png", "e.png")
    assert len(kept.pictures) == 5


def test_whose_pictures_are_left_is_said(index: PictureIndex):
    _, report = curate(index, CurationSpec(min_caption_words=2))
    assert report.licences == {"CC0-1.0": 3, "not stated": 2, "CC-BY-4.0": 1}
    assert report.sources == {f"host-{letter}.org": 1 for letter in "abcdfg"}
    assert "left out        1  caption of fewer than 2 words (first e.png)" in str(report)


def test_filters_that_cannot_work_are_one_line(index: PictureIndex):
    with pytest.raises(InvalidValue, match=r"filters.watermark_column: 'wm' .* license, punsafe, pwatermark, url"):
        curate(index, CurationSpec(max_watermark=0.5, watermark_column="wm"))
    pytest.importorskip("py3langid")
    with pytest.raises(InvalidValue, match="filters.languages: 'english'"):
        curate(index, CurationSpec(languages=("english",)))
    with pytest.raises(VegaError, match="nothing is left; .* 8 pictures, 0 kept"):
        curate(index, CurationSpec(min_size_px=5000))
    for values, message in (
        ({"watermark_column": "wm"}, "filters.watermark_column: 'wm' .* nothing without max_watermark"),
        ({"min_caption_words": 5, "max_caption_words": 4}, "filters.max_caption_words: 4"),
        ({"near_duplicate_bits": 4}, "near_duplicate_bits"),
    ):
        with pytest.raises(VegaError, match=message):
            CurationSpec.from_dict(values)


def test_the_command_says_what_training_would_see(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    filters = ["--min-size", "25", "--duplicates", "--near-duplicate-bits", "2"]
    file = tmp_path / "report.json"
    assert main(["data", "curate", "--folder", str(folder), *filters, "--json", "--report", str(file)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    counts = {"unreadable": 1, "smaller than 25 px": 1, "the same file as another": 1, "looks like another": 1}
    assert (found["kept"], found["left_out"]) == (4, counts)
    assert json.loads(file.read_text())["left_out"]["smaller than 25 px"] == {"pictures": 1, "names": ["g.png"]}
    assert main(["data", "curate", "--folder", str(folder)]) == 0
    assert "8 pictures, 7 kept" in capsys.readouterr().out
    for arguments, message in (
        ([], "data: {} is not allowed; allowed: exactly one of folder, shards, dataset"),
        (["--folder", "x", "--shards", "y"], "exactly one of"),
        (["--folder", "x", "--split", "test"], "data.split: 'test' is not allowed; allowed: nothing without"),
        (["--folder", "nowhere"], "nowhere: no such folder"),
        (["--folder", str(folder), "--report", "/dev/null/x"], "/dev/null/x: cannot be written"),
    ):
        assert main(["data", "curate", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_spec_names_one_place():
    with pytest.raises(VegaError, match="exactly one of folder, shards, dataset"):
        ImageLatentsSpec.from_dict({"kind": "image_latents"})


def test_looks_survive_scaling_and_compression_but_not_another_colour(tmp_path: Path):
    for number in range(20):
        picture = drawing(number)
        picture.resize((120, 96)).save(tmp_path / "small.jpg", quality=70)
        with Image.open(tmp_path / "small.jpg") as small:
            assert first_alike([look_hash(picture), look_hash(small)], MOST_BITS) == [0, 0]
    looks = [look_hash(drawing(number)) for number in range(50)]
    assert first_alike(looks, MOST_BITS) == list(range(50))
    plain = [look_hash(Image.new("RGB", (50, 50), colour)) for colour in ("red", "blue", "red")]
    assert first_alike(plain, 0) == [0, 1, 0]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12), st.integers(0, MOST_BITS), st.data())
def test_no_near_pair_is_missed(values: list[int], bits: int, data: st.DataObject):
    for _ in range(4):  # neighbours of what is there
        flips = data.draw(st.sets(st.integers(0, 63), max_size=5))
        values.append(data.draw(st.sampled_from(values)) ^ sum(1 << bit for bit in flips))
    kept: list[int] = []
    expected = []
    for place, value in enumerate(values):
        near = [other for other in kept if (values[other] ^ value).bit_count() <= bits]
        expected.append(min(near, default=place))
        if not near:
            kept.append(place)
    assert first_alike([value << 24 for value in values], bits) == expected
