"""A table of addresses becomes shards: the real img2dataset against a server on this machine, then training on them."""

from __future__ import annotations

import http.server
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from vega_diffusion.cli.main import main
from vega_diffusion.data.picture_index import index_pictures
from vega_diffusion.data.picture_shards import ShardPictures
from vega_diffusion.data.url_tables import read_table

COLOURS = ("red", "green", "blue", "yellow", "white", "black")
TOOLS = Path(__file__).parents[2] / ".venv-tools"


class Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name, file = self.path.strip("/").removesuffix(".png"), io.BytesIO(b"<html>no picture</html>")
        if name in COLOURS:
            Image.new("RGB", (200, 100), name).save(file, "PNG")
        self.send_response(404 if name == "gone" else 200)
        if name == "black":
            self.send_header("X-Robots-Tag", "noai")
        self.send_header("Content-Length", str(len(file.getvalue())))
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VEGA_TOOLS", os.environ.get("VEGA_TOOLS", str(TOOLS)))


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def grit(path: Path, addresses: list[str]) -> None:
    """A table with the columns of zzliang/GRIT."""
    number = len(addresses)
    write_parquet(
        path,
        {
            "key": [f"{n:09d}" for n in range(number)],
            "clip_similarity_vitb32": [0.3] * number,
            "clip_similarity_vitl14": [0.2] * number,
            "id": list(range(number)),
            "url": addresses,
            "caption": [f"a wall, number {n}" for n in range(number)],
            "width": [200] * number,
            "height": [100] * number,
            "noun_chunks": [[[0.0, 6.0, 0.1, 0.1, 0.9, 0.9, 0.99]]] * number,
            "ref_exps": [[[0.0, 6.0, 0.1, 0.1, 0.9, 0.9, 0.99]]] * number,
        },
    )


def midjourney(path: Path, addresses: list[str]) -> None:
    """A table with those columns of wanng/midjourney-v5-202304-clean that matter here."""
    number = len(addresses)
    captions = [f"a wall, number {n}" for n in range(number)]
    upscaled = [n % 2 == 0 for n in range(number)]
    write_parquet(path, {"Attachments": addresses, "clean_prompts": captions, "upscaled": upscaled})


def write_parquet(path: Path, columns: dict) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)


@pytest.mark.slow
@pytest.mark.parametrize("write", [grit, midjourney])
def test_tables_become_shards_that_train(
    write: Callable[[Path, list[str]], None], server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, shards = tmp_path / "table.parquet", tmp_path / "shards"
    write(table, [f"{server}/{name}.png" for name in (*COLOURS, "gone", "page")])
    arguments = ["data", "download", str(table), "--output", str(shards), "--shard-size", "4", "--licence", "test"]
    arguments += ["--size", "80", "--threads", "4", "--json"]
    assert main(arguments) == 0
    record = last_line(capsys)
    assert (record["rows"], record["downloaded"], record["shards"], record["licence"]) == (8, 5, 2, "test")
    assert record["lost"] == {
        "HTTP Error 404: Not Found": 1,
        "Image decoding error": 1,
        "Use of image disallowed by X-Robots-Tag directive": 1,
    }
    assert json.loads((shards / "record/download.json").read_text())["lost"] == record["lost"]
    index = index_pictures(ShardPictures(shards))
    assert [one.caption for one in index.pictures] == [f"a wall, number {n}" for n in range(5)]
    assert {one.size for one in index.pictures} == {(160, 80)}
    assert {one.facts["original_width"] for one in index.pictures} == {200}
    if write is midjourney:
        assert [one.facts["upscaled"] for one in index.pictures] == [True, False, True, False, True]
    # The same call again fetches nothing; another size does not go into the same folder.
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    assert main(arguments) == 0
    assert {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")} == before
    assert last_line(capsys)["downloaded"] == 5
    assert main([*arguments, "--size", "40"]) == 2
    assert "--output" in capsys.readouterr().err

    recipe = tmp_path / "shards.toml"
    recipe.write_text(f"""
steps = 1
batch_size = 2
micro_batch_size = 2
[model]
base = "vega-mini"
train = ["unet"]
weights = {{ vae = "vega-mini", text_encoder = "vega-mini", text_encoder_2 = "vega-mini", unet = "vega-mini" }}
[data]
kind = "image_latents"
shards = "{shards}"
resolution_px = 128
bucket_step_px = 32
[data.filters]
min_size_px = 64
[objective]
kind = "denoising"
[optimizer]
lr = 1e-4
""")
    assert main(["train", str(recipe), "--run-name", "shards"]) == 0
    assert "5 pictures, 5 kept" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_download_goes_on(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, shards = tmp_path / "table.parquet", tmp_path / "shards"
    grit(table, [f"{server}/{COLOURS[n % 5]}.png" for n in range(8)])
    arguments = ["data", "download", str(table), "--output", str(shards), "--shard-size", "2", "--json"]
    assert main(arguments) == 0
    for path in shards.glob("00003*"):
        path.unlink()
    assert main(arguments) == 0
    assert last_line(capsys)["downloaded"] == 8
    assert len(ShardPictures(shards).entries()) == 8


@pytest.mark.parametrize(
    ("write", "url", "caption"), [(grit, "url", "caption"), (midjourney, "Attachments", "clean_prompts")]
)
def test_the_columns_of_known_tables_are_known(write, url: str, caption: str, tmp_path: Path) -> None:
    write(tmp_path / "table.parquet", ["http://a", "http://b"])
    table = read_table(tmp_path)
    assert (table.format, table.rows, table.url_column, table.caption_column) == ("parquet", 2, url, caption)
    wanted = ("clip_similarity_vitb32", "clip_similarity_vitl14", "id") if write is grit else ("upscaled",)
    assert table.columns == wanted  # neither boxes nor what img2dataset writes itself


def test_other_formats_and_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('where,what\nhttp://a,"a cat, sitting"\nhttp://b,a dog\n')
    table = read_table(tmp_path / "t.csv", "where", "what")
    assert (table.format, table.rows, table.columns) == ("csv", 2, ())
    (tmp_path / "t.tsv").write_text("url\ttext\tpwatermark\nhttp://a\ta cat\t0.1\n")
    assert read_table(tmp_path / "t.tsv").columns == ("pwatermark",)
    (tmp_path / "t.jsonl").write_text('{"url": "http://a", "caption": "a cat", "boxes": [1]}\n')
    assert read_table(tmp_path / "t.jsonl").columns == ()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("where,what\nhttp://a,a cat\n", [], "--url-column: None is not allowed; allowed: a column of the table"),
        ("url,what\nhttp://a,a cat\n", [], "--caption-column: None"),
        ("url,text\nhttp://a,a cat\n", ["--url-column", "address"], "--url-column: 'address'"),
        ("url,text\nhttp://a,a cat\n", ["--size", "0"], "size: 0"),
        (None, [], "no table; give a file or folder of"),
    ],
)
def test_bad_tables_are_one_line(
    content: str | None, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    if content is not None:
        table.write_text(content)
    assert main(["data", "download", str(table), "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


def test_without_the_tool_the_way_to_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEGA_TOOLS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "t.csv").write_text("url,text\nhttp://a,a cat\n")
    assert main(["data", "download", str(tmp_path / "t.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "img2dataset: not installed; run make tools" in capsys.readouterr().err
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/img2dataset"
    program.write_text("#!/bin/sh\necho the last word\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.defpath)
    assert main(["data", "download", str(tmp_path / "t.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "img2dataset: ended with 3 (the last word)" in capsys.readouterr().err
