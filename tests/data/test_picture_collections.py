"""Shards and data sets are read like folders: same captions, same pixels, by place; what vanishes is named."""

from __future__ import annotations

import io
import json
import resource
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from webdataset.writer import ShardWriter, TarWriter

from vega_diffusion.data.picture_dataset import DatasetPictures
from vega_diffusion.data.picture_folder import FolderPictures
from vega_diffusion.data.picture_index import index_pictures
from vega_diffusion.data.picture_shards import ShardPictures
from vega_diffusion.errors import InvalidValue, MissingFile, VegaError

datasets = pytest.importorskip("datasets")

COLOURS = ("red", "green", "blue", "yellow", "white")


def file_of(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards as the library WebDataset writes them; the fifth sample has its caption in a text file."""
    folder = tmp_path / "shards"
    folder.mkdir()
    with ShardWriter(str(folder / "%05d.tar"), maxcount=3, verbose=0) as writer:
        for number, colour in enumerate(COLOURS):
            sample: dict = {"__key__": f"{number:03d}", "png": file_of(colour)}
            if number < 4:
                sample["json"] = {"text": f"a {colour} wall", "license": "CC0-1.0"}
            else:
                sample["txt"] = f"a {colour} wall"
            writer.write(sample)
    return folder


def test_shards_hold_what_webdataset_wrote_into_them(shards: Path):
    collection = ShardPictures(shards)
    entries = collection.entries()
    assert [entry.name for entry in entries] == [f"0000{n // 3}.tar/{n:03d}" for n in range(5)]
    assert [entry.caption for entry in entries] == [f"a {colour} wall" for colour in COLOURS]
    assert [collection.read(number) for number in range(5)] == [file_of(colour) for colour in COLOURS]
    assert [entry.facts for entry in entries] == [{"license": "CC0-1.0"}] * 4 + [{}]
    assert len(ShardPictures(shards / "00000.tar").entries()) == 3


def test_a_samples_own_members_come_before_those_of_a_further_suffix(tmp_path: Path):
    members = {
        "1.png": file_of("red"),
        "1.mask.png": file_of("white"),
        "1.txt": b"a wall",
        "1.ocr.txt": b"EXIT",
        "1.json": b'{"license": "CC0-1.0"}',
        "1.meta.json": b'{"text": "no caption"}',
        "2.png": file_of("blue"),
        "2.jpg": file_of("green"),
        "2.txt": b"two walls",
        "3.small.png": file_of("yellow"),
        "3.txt": b"a small wall",
    }
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    index = index_pictures(ShardPictures(tmp_path))
    assert [(one.name, one.caption) for one in index.pictures] == [("a.tar/1", "a wall"), ("a.tar/3", "a small wall")]
    assert index.pictures[0].facts == {"license": "CC0-1.0"}
    assert [index.read(one) for one in index.pictures] == [file_of("red"), file_of("yellow")]
    assert index.left_out == {"with several pictures": ("a.tar/2",)}


def test_a_data_set_is_read_like_a_folder(tmp_path: Path):
    rows = {
        "picture": [{"bytes": file_of(colour), "path": None} for colour in COLOURS],
        "said": [f"a {colour} wall" for colour in COLOURS],
        "upscaled": [True, False, True, True, True],
    }
    features = datasets.Features(
        {"picture": datasets.Image(), "said": datasets.Value("string"), "upscaled": datasets.Value("bool")}
    )
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "parquet/train.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for place in ("parquet", "saved"):
        collection = DatasetPictures(str(tmp_path / place), "train", "picture", "said")
        entries = collection.entries()
        assert [entry.caption for entry in entries] == rows["said"]
        assert [entry.facts["upscaled"] for entry in entries] == rows["upscaled"]
        assert [collection.read(number) for number in range(5)] == [file_of(colour) for colour in COLOURS]
        again = DatasetPictures(str(tmp_path / place), "train", "picture", "said")
        assert [entry.stamp for entry in again.entries()] == [entry.stamp for entry in entries]
    for column, message in (("image", "data.image_column: 'image'"), ("said", "'said' .* a column of pictures")):
        with pytest.raises(InvalidValue, match=message):
            DatasetPictures(str(tmp_path / "saved"), "train", column, "said")
    with pytest.raises(InvalidValue, match="data.caption_column: 'text' .* picture, said, upscaled"):
        DatasetPictures(str(tmp_path / "saved"), "train", "picture")
    with pytest.raises(VegaError, match=r"data.dataset: .*nowhere.* cannot be loaded"):
        DatasetPictures(str(tmp_path / "nowhere"))


def test_pictures_are_looked_at_once(shards: Path, tmp_path: Path):
    class Counted(ShardPictures):
        reads = 0

        def read(self, number: int) -> bytes:
            type(self).reads += 1
            return super().read(number)

    first = index_pictures(Counted(shards), tmp_path / "indexes")
    assert Counted.reads == 5
    assert index_pictures(Counted(shards), tmp_path / "indexes").pictures == first.pictures
    assert Counted.reads == 5
    (memory,) = (tmp_path / "indexes").iterdir()
    memory.write_bytes(memory.read_bytes()[:-20])  # killed within its last line
    assert index_pictures(Counted(shards), tmp_path / "indexes").pictures == first.pictures
    assert Counted.reads == 6
    with TarWriter(str(shards / "00001.tar")) as writer:
        writer.write({"__key__": "003", "png": file_of("black"), "txt": "a black wall"})
    changed = index_pictures(Counted(shards), tmp_path / "indexes").pictures
    assert Counted.reads == 7
    assert [picture.caption for picture in changed[3:]] == ["a black wall"]


def test_a_file_that_cannot_be_read_now_is_looked_at_again(shards: Path, tmp_path: Path):
    class Flaky(ShardPictures):
        broken = True

        def read(self, number: int) -> bytes:
            if self.broken and number == 2:
                raise OSError("the network is away")
            return super().read(number)

    first = index_pictures(Flaky(shards), tmp_path / "indexes")
    assert first.left_out == {"unreadable": ("00000.tar/002",)}
    Flaky.broken = False
    assert len(index_pictures(Flaky(shards), tmp_path / "indexes").pictures) == 5


def test_a_damaged_memory_is_read_around_and_a_full_disk_is_one_line(shards: Path, tmp_path: Path):
    first = index_pictures(ShardPictures(shards), tmp_path / "indexes")
    (memory,) = (tmp_path / "indexes").iterdir()
    lines = memory.read_bytes().splitlines()
    memory.write_bytes(b"\n".join([lines[0], b"\x00\x01 no JSON", b'["of another shape"]', *lines[3:]]))
    assert index_pictures(ShardPictures(shards), tmp_path / "indexes").pictures == first.pictures
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(VegaError, match="cannot be written .* free disk space"):
            index_pictures(ShardPictures(shards), tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert index_pictures(ShardPictures(shards), tmp_path / "full").pictures == first.pictures


def test_what_vanishes_or_changes_after_indexing_is_named(shards: Path, tmp_path: Path):
    index = index_pictures(ShardPictures(shards))
    (shards / "00001.tar").rename(tmp_path / "away.tar")
    assert index.read(index.pictures[0]) == file_of("red")
    with pytest.raises(VegaError, match=r"00001.tar/003 was there and cannot be read now"):
        index.read(index.pictures[3])
    (shards / "00001.tar").write_bytes((tmp_path / "away.tar").read_bytes()[:600])
    with pytest.raises(VegaError, match=r"00001.tar/003 was there and cannot be read now .*cut short"):
        index.read(index.pictures[3])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(file_of("red"))
    (folder / "a.txt").write_text("a wall")
    found = index_pictures(FolderPictures(folder))
    (folder / "a.png").write_bytes(file_of("blue"))
    with pytest.raises(VegaError, match=r"a.png has changed since it was indexed"):
        found.read(found.pictures[0])


def test_broken_shards_are_named_and_truncated_pictures_left_out(shards: Path, tmp_path: Path):
    with tarfile.open(shards / "00002.tar", "w") as archive:
        for name, content in (("9.png", file_of("red")[:60]), ("9.json", b'{"text": "a half wall"'), ("x.cls", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    index = index_pictures(ShardPictures(shards))
    assert len(index.pictures) == 5
    assert index.left_out == {"unreadable": ("00002.tar/9",)}
    (shards / "00001.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(VegaError, match=r"00001.tar: cannot be read"):
        ShardPictures(shards).entries()
    with pytest.raises(MissingFile, match=r"no .tar file"):
        ShardPictures(tmp_path)


def test_metadata_rows_are_facts(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(file_of("red"))
    row = {"file_name": "a.png", "text": "a wall", "license": "CC0-1.0", "pwatermark": 0.2}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    (entry,) = FolderPictures(tmp_path).entries()
    assert entry.facts == {"license": "CC0-1.0", "pwatermark": 0.2}
