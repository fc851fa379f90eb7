"""`vega data`: what a user gets, and what happens to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vega_diffusion.cli.main import main
from vega_diffusion.data.scene_stream import scene_mix
from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.captions import caption
from vega_diffusion.data.scenes.filters import apply_filter
from vega_diffusion.data.scenes.folder import write_scene_folder
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import Scene
from vega_diffusion.data.scenes.subjects import load_subjects
from vega_diffusion.errors import VegaError
from vega_diffusion.specs.recipe import TrainRecipe


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def atlas() -> SpriteAtlas:
    return SpriteAtlas.load()


@pytest.fixture(scope="module")
def written(atlas: SpriteAtlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "train"
    write_scene_folder(folder, lambda: atlas, count=12, seed=3)
    return folder


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_scenes_are_an_imagefolder_with_exact_specification(written: Path, atlas: SpriteAtlas) -> None:
    rows = rows_of(written)
    assert len(rows) == 12
    scenes = [Scene.from_dict(row["scene"]) for row in rows]
    assert scenes == [sample_scene(3, position) for position in range(12)]
    assert [row["text"] for row in rows] == [caption(scene, 3, position) for position, scene in enumerate(scenes)]
    drawn = ((SceneRenderer(atlas).render(scenes) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for row, expected in zip(rows, drawn, strict=True):
        assert np.array_equal(np.asarray(Image.open(written / row["file_name"])), expected)


def test_the_command_writes_what_the_function_writes(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["data", "scenes", "--count", "12", "--output", str(output), "--seed", "3", "--json"]) == 0
    report = last_line(capsys)
    assert report == {
        "folder": str(output),
        "count": 12,
        "seed": 3,
        "split": "train",
        "written": 12,
        "kept": 0,
    }
    assert contents(output) == contents(written)


def test_an_interrupted_writing_goes_on_and_a_folder_can_grow(
    written: Path, atlas: SpriteAtlas, tmp_path: Path
) -> None:
    folder = tmp_path / "grown"

    def interrupt(pictures: int) -> None:
        if pictures:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scene_folder(folder, lambda: atlas, count=5, seed=3, progress=interrupt)
    (folder / ".scene-0000009.png.part").write_bytes(b"half a picture")
    assert not (folder / "metadata.jsonl").exists()
    assert write_scene_folder(folder, lambda: atlas, count=12, seed=3) == {"written": 7, "kept": 5}
    assert contents(folder) == contents(written)


def test_scenes_behind_a_filter_say_so_and_are_the_same_scenes(
    atlas: SpriteAtlas, written: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "neon"
    write_scene_folder(folder, lambda: atlas, count=3, seed=3, filter_name="neon")
    plain, neon = rows_of(written)[:3], rows_of(folder)
    assert [row["text"] for row in neon] == [f"{row['text']}, neon style" for row in plain]
    for row in neon:
        pixels = [np.asarray(Image.open(place / row["file_name"])) for place in (written, folder)]
        before = torch.from_numpy(pixels[0].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        wanted = ((apply_filter("neon", before) + 1) * 127.5).round().byte()[0].permute(1, 2, 0).numpy()
        # The filter sees numbers before they are rounded to 256 levels.
        assert np.abs(wanted.astype(int) - pixels[1].astype(int)).max() <= 12
    with pytest.raises(VegaError, match="another filter"):
        write_scene_folder(folder, lambda: atlas, count=3, seed=3, filter_name="sketch")


def test_scenes_may_be_drawn_as_a_recipe_draws_them(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes/vega-mini-binding-cpu.toml"
    folder = tmp_path / "scenes"
    assert main(["data", "scenes", "--count", "5", "--seed", "2", "--output", str(folder), "--mix", str(recipe)]) == 0
    mix = scene_mix(TrainRecipe.read(recipe).data.mix)  # type: ignore[union-attr]
    assert mix.reading_order_rate == 1.0
    wanted = [sample_scene(2, position, mix=mix) for position in range(5)]
    assert [Scene.from_dict(row["scene"]) for row in rows_of(folder)] == wanted


@pytest.mark.parametrize("name", ["black-and-white cat", "face with sunglasses"])
def test_a_subject_stands_alone_before_what_it_stands_out_from(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "subject"
    arguments = ["data", "scenes", "--count", "6", "--subject", name, "--output", str(folder), "--json"]
    assert main(arguments) == 0
    assert last_line(capsys)["count"] == 6
    for row in rows_of(folder):
        scene = Scene.from_dict(row["scene"])
        assert row["text"] == f"a {name}"
        assert [placed.variant for placed in scene.objects] == [f"subject/{name}"]
        assert scene.background in load_subjects()[name].backgrounds
    before = contents(folder)
    assert main(arguments) == 0
    assert contents(folder) == before


def test_other_peoples_folders_and_other_streams_are_left_alone(
    written: Path, atlas: SpriteAtlas, tmp_path: Path
) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"dear to me")
    for folder, seed, message in ((foreign, 3, "not empty"), (written, 4, "another seed")):
        before = contents(folder)
        with pytest.raises(VegaError, match=message):
            write_scene_folder(folder, lambda: atlas, count=12, seed=seed)
        assert contents(folder) == before
    with pytest.raises(VegaError, match="count: 3 is not allowed; allowed: 12 or more"):
        write_scene_folder(written, lambda: atlas, count=3, seed=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes", "--count", "0", "--output", "x"], "count: 0"),
        (["scenes", "--count", "many", "--output", "x"], "--count"),
        (["scenes", "--count", "1", "--output", "x", "--seed", "-1"], "seed: -1"),
        (["scenes", "--count", "1", "--output", "x", "--split", "dve"], "split: 'dve'"),
        (["scenes", "--count", "1", "--output", "/dev/null/x"], "/dev/null/x"),
        (["scenes", "--count", "1", "--output", "x", "--icons", "nowhere"], "run `vega data icons`"),
        (["scenes", "--count", "1", "--output", "x", "--filter", "oil"], "filter: 'oil'"),
        (["scenes", "--count", "1", "--output", "x", "--subject", "a dog"], "subject: 'a dog'"),
        (["scenes", "--count", "1", "--output", "x", "--mix", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (["scenes", "--count", "1"], "--output"),
        (["check", "nowhere"], "nowhere: no such folder"),
        (["check", ".", "--min-size", "0"], "min_size: 0"),
        (["icons", "--tarballs", "nowhere"], "nowhere"),
        (["paint"], "subcommand: 'paint'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert list(tmp_path.rglob("*.png")) == []


def picture(path: Path, size: tuple[int, int] = (140, 130), grey: int = 0) -> None:
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def test_check_names_everything_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mixed"
    (folder / "more").mkdir(parents=True)
    picture(folder / "good.png", grey=1)
    picture(folder / "twin.png", grey=2)
    picture(folder / "more" / "twin.webp", grey=2)
    picture(folder / "tiny.jpg", (140, 60), grey=3)
    picture(folder / "silent.png", grey=4)
    picture(folder / "blank.png", grey=5)
    picture(folder / ".hidden.png", grey=6)
    whole = (folder / "good.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "more" / "twin.txt").write_text("grey, too")
    rows = [
        {"file_name": name, "text": "grey"} for name in ("good.png", "twin.png", "tiny.jpg", "torn.png", "gone.png")
    ]
    rows.append({"file_name": "blank.png", "text": "  "})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["data", "check", str(folder), "--json"]) == 2
    report = last_line(capsys)
    assert report["unreadable"] == ["torn.png"]
    assert report["duplicates"] == [["more/twin.webp", "twin.png"]]
    assert report["missing_captions"] == ["blank.png", "silent.png"]
    assert report["missing_images"] == ["gone.png"]
    assert report["too_small"] == ["tiny.jpg"]
    assert report["sizes"] == {"140x130": 5, "140x60": 1}
    assert (report["num_images"], report["num_captions"], report["ok"]) == (7, 5, False)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert main(["data", "check", str(folder)]) == 2
    assert "unreadable: 1: torn.png" in capsys.readouterr().out


def test_check_passes_what_scenes_wrote(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(written)]) == 0
    out = capsys.readouterr().out
    assert "12 pictures, 12 with a caption" in out
    assert "nothing to mend" in out


def test_check_reads_csv_and_other_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,prompt\na.png,grey\n")
    assert main(["data", "check", str(tmp_path), "--caption-column", "prompt", "--json"]) == 0
    assert last_line(capsys)["num_captions"] == 1
    assert main(["data", "check", str(tmp_path), "--json"]) == 2


@pytest.mark.parametrize("line", ['{"text": "no name"}', "{broken", '["list"]'])
def test_check_names_the_broken_line_of_metadata(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "metadata.jsonl" in capsys.readouterr().err


def test_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("icons", "scenes", "check"))
