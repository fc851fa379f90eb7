"""PNG metadata: what is written comes back, other programs find their text, files are whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.inference.metadata import PictureRecord, parameters_text, read_record, write_png
from vega_diffusion.specs.architecture import GenerationDefaults
from vega_diffusion.specs.request import GenerateRequest

RECORD = PictureRecord(
    request=GenerateRequest(prompt="ein Käse,\nBREAK 猫", negative_prompt="blurry", seed=7, num_steps=3).resolved(
        GenerationDefaults(width=64, height=72)
    ),
    model="vega-mini",
    model_digest="0123456789abcdef" * 4,
    dtype="float32",
    device="cpu",
    software={"vega-diffusion": "0.1.0", "torch": "2", "diffusers": "0"},
)


def picture() -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (72, 64, 3), dtype=numpy.uint8))


def test_the_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "it.png"
    write_png(picture(), path, RECORD, "Euler a")
    assert read_record(path) == RECORD
    with Image.open(path) as image:
        assert numpy.array_equal(numpy.asarray(image), numpy.asarray(picture()))
    assert [file.name for file in path.parent.iterdir()] == ["it.png"]


@pytest.mark.parametrize("interval", [(0.0, 0.8), None])
def test_records_of_before_guidance_was_kept_keep_none(interval: tuple[float, float] | None) -> None:
    update = {"profile": "balanced", "guidance_interval": interval, "guidance_kept": None}
    record = RECORD.model_copy(update={"request": RECORD.request.model_copy(update=update)})
    written = json.loads(record.to_json())
    del written["request"]["guidance_kept"]
    read = PictureRecord.from_json(json.dumps(written)).request
    assert read.guidance_kept == (None if interval is None else 0.0)
    if interval is not None:
        assert read.resolved(GenerationDefaults()).guidance_kept == 0.0, "not what the profile says today"


def test_other_programs_find_their_text() -> None:
    assert parameters_text(RECORD, "Euler a") == (
        "ein Käse,\nBREAK 猫\nNegative prompt: blurry\n"
        "Steps: 3, Sampler: Euler a, CFG scale: 5.0, Seed: 7, Size: 64x72, Model hash: 0123456789, Model: vega-mini, "
        "Version: vega-diffusion 0.1.0"
    )


def test_the_text_stands_under_the_common_key(tmp_path: Path) -> None:
    write_png(picture(), tmp_path / "it.png", RECORD, "Euler")
    with Image.open(tmp_path / "it.png") as image:
        assert image.text["parameters"] == parameters_text(RECORD, "Euler")  # pyright: ignore[reportAttributeAccessIssue]


def text_chunk(path: Path, text: str | None) -> Path:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text is not None:
        info.add_text("vega", text)
    picture().save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, "no vega record"),
        ("{", "damaged.*not a JSON object"),
        ("[1]", "damaged.*not a JSON object"),
        (json.dumps({"version": 9}), "version 9.*allowed: 1"),
        (json.dumps({"version": 1}), "damaged.*missing"),
        (RECORD.to_json().replace('"num_steps":3', '"num_steps":0'), "num_steps.*0"),
    ],
)
def test_pictures_without_a_sound_record_are_refused(tmp_path: Path, text: str | None, names: str) -> None:
    with pytest.raises(VegaError, match=names) as error:
        read_record(text_chunk(tmp_path / "x.png", text))
    assert "\n" not in str(error.value)


def test_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no such file"):
        read_record(tmp_path / "none.png")
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(MissingFile, match="not a readable picture"):
        read_record(tmp_path / "x.png")
    write_png(picture(), tmp_path / "cut.png", RECORD, "Euler")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-2000])
    with pytest.raises(MissingFile, match="not a readable picture"):
        read_record(tmp_path / "cut.png")


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(picture(), tmp_path / "giant.png", RECORD, "Euler")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(MissingFile, match="not a readable picture"):
        read_record(tmp_path / "giant.png")


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_metadata import RECORD, picture
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.metadata import write_png
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_png(picture(), Path(sys.argv[2]), RECORD, "Euler")
except VegaError as error:
    print(error)
    sys.exit(2)
"""


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow, as it does on a full disk."""
    path = tmp_path / "good.png"
    write_png(picture(), path, RECORD, "Euler")
    good = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent), str(path)], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "output" in done.stdout
    assert "cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["good.png"]
