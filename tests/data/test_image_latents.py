"""Pictures of a folder as samples: cuts, size and crop numbers, latents by content, captions, and what is left out."""

from __future__ import annotations

import json
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from own_pictures import source_of
from vega_diffusion.cli.main import main
from vega_diffusion.data.image_latents import ImageLatents
from vega_diffusion.data.picture_folder import FolderPictures
from vega_diffusion.data.picture_index import Picture, index_pictures
from vega_diffusion.data.picture_views import middle_of, pixels_of, time_ids
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.models.checkpoint import load_autoencoder
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.run_directory import RunDirectory

RECIPE = """
steps = 3
batch_size = 4
micro_batch_size = 2
save_every = 1
log_every = 1
[model]
base = "vega-mini"
train = ["unet"]
weights = { vae = "vega-mini", text_encoder = "vega-mini", text_encoder_2 = "vega-mini", unet = "vega-mini" }
[data]
kind = "image_latents"
folder = "FOLDER"
resolution_px = 128
bucket_step_px = 32
[objective]
kind = "denoising"
[optimizer]
lr = 1e-4
"""


def paint(path: Path, size: tuple[int, int], colour: str, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, (size, colour) in enumerate(
        [((128, 128), "red"), ((300, 310), "green"), ((256, 140), "blue"), ((130, 260), "yellow"), ((64, 64), "white")]
    ):
        paint(folder / f"{number}.png", size, colour)
    paint(folder / "none.png", (128, 128), "black")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a broken one")
    rows = [{"file_name": f"{number}.png", "text": f"{number} apples"} for number in range(5)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture
def recipe(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    file = tmp_path / "pictures.toml"
    file.write_text(RECIPE.replace("FOLDER", str(folder)))
    return file


@pytest.mark.parametrize(
    ("size", "bucket", "scaled", "top", "left"),
    [
        ((128, 128), (128, 128), (128, 128), 0, 0),
        ((300, 310), (128, 128), (128, 132), 2, 0),
        ((64, 64), (128, 128), (128, 128), 0, 0),
        ((256, 140), (160, 96), (176, 96), 0, 8),
    ],
)
def test_a_picture_is_scaled_to_cover_and_cut_from_the_middle(size, bucket, scaled, top, left):
    cut = middle_of(size, bucket)
    assert (cut.scaled, cut.top, cut.left) == (scaled, top, left)
    picture = Picture(0, "a.png", "a wall", size, "", 0)
    assert time_ids(picture, bucket) == [size[1], size[0], top, left, bucket[1], bucket[0]]
    scaled_down = replace(picture, facts={"original_width": 4000, "original_height": 3000})
    assert time_ids(scaled_down, bucket) == [3000, 4000, top, left, bucket[1], bucket[0]]


def test_pixels_are_what_is_seen(tmp_path: Path):
    path = tmp_path / "half.png"
    picture = Image.new("RGBA", (128, 64), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (64, 0, 128, 64))
    picture.save(path)
    pixels = pixels_of(path.read_bytes(), (128, 64))
    assert pixels.shape == (3, 64, 128)
    assert pixels[:, 32, 10].tolist() == [1, -1, -1]
    assert pixels[:, 32, 120].tolist() == [1, 1, 1]  # transparent is white
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (200, 100), "blue").save(turned, exif=exif)
    (tmp_path / "turned.txt").write_text("a turned one")
    (tmp_path / "half.txt").write_text("a half one")
    sizes = {picture.name: picture.size for picture in index_pictures(FolderPictures(tmp_path)).pictures}
    assert sizes == {"half.png": (128, 64), "turned.jpg": (100, 200)}


def test_what_cannot_be_used_is_named(folder: Path):
    index = index_pictures(FolderPictures(folder))
    assert [picture.name for picture in index.pictures] == [f"{number}.png" for number in range(5)]
    assert index.left_out == {"unreadable": ("broken.png",), "without a caption": ("none.png",)}
    assert str(index) == "5 pictures, left out: 1 unreadable (first broken.png); 1 without a caption (first none.png)"
    for path in folder.glob("?.png"):
        path.unlink()
    with pytest.raises(VegaError, match="no picture with a caption"):
        index_pictures(FolderPictures(folder))


def test_batches_hold_one_size_and_everything_that_training_needs(recipe: Path, capsys: pytest.CaptureFixture[str]):
    source = source_of(recipe, "data.empty_caption_rate=0.0")
    assert "7 pictures, 5 kept" in capsys.readouterr().err
    assert isinstance(source, ImageLatents)
    seen: dict[str, tuple[int, ...]] = {}
    for start in range(0, 40, 2):
        batch = source.load(range(start, start + 2))
        latents, ids = batch.tensors["latents"], batch.tensors["time_ids"]
        assert latents.shape[2:] == (ids[0, 4] // 8, ids[0, 5] // 8)
        assert batch.tensors["prompt_embeds"].shape == (2, 77, 192)
        for name, caption in zip(batch.sample_ids, batch.captions or [], strict=True):
            assert caption == f"{name[0]} apples"
            seen[name] = tuple(latents.shape[2:])
    assert seen == {"0.png": (16, 16), "1.png": (16, 16), "2.png": (12, 20), "3.png": (20, 12), "4.png": (16, 16)}
    with pytest.raises(ValueError, match="buckets"):
        source.load(range(40))


def test_latents_are_those_of_the_autoencoder(recipe: Path, folder: Path):
    source = source_of(recipe)
    home = resolve_model("vega-mini")
    vae = load_autoencoder(home, load_spec(home).autoencoder, torch.float32)
    bucket = next(one for one in source.buckets if one.size == (160, 96))
    with torch.no_grad():
        found = vae.encode(pixels_of((folder / "2.png").read_bytes(), (160, 96))[None]).latent_dist  # type: ignore[union-attr]
    stored = torch.from_numpy(np.array(bucket.posteriors[bucket.rows[0][0]])).float()
    torch.testing.assert_close(stored, torch.cat([found.mean, found.std]), rtol=1e-2, atol=1e-2)


def test_one_changed_picture_is_encoded_alone(recipe: Path, folder: Path, tmp_path: Path):
    def stores() -> dict[str, int]:
        return {path.parent.name: path.stat().st_size for path in (tmp_path / "home/images").glob("*/rows.f16")}

    first = source_of(recipe)
    before = stores()
    (folder / "0.png").rename(folder / "9.png")
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("0.png", "9.png"))
    renamed = source_of(recipe)
    assert stores() == before
    assert renamed.fingerprint() != first.fingerprint()
    paint(folder / "1.png", (300, 310), "pink")
    source_of(recipe)
    grown = {name: size - before[name] for name, size in stores().items() if size != before[name]}
    assert list(grown.values()) == [2 * 2 * 4 * 16 * 16]
    (folder / "metadata.jsonl").write_text(text.replace("0.png", "9.png").replace("2 apples", "two pears"))
    assert source_of(recipe).fingerprint() != renamed.fingerprint()
    assert stores() == {name: size + grown.get(name, 0) for name, size in before.items()}


def test_keys_know_how_pictures_were_scaled_and_latents_too(recipe: Path):
    """What a teacher answered about a sample is found by its key alone; saved runs keep their fingerprint."""
    first, second = source_of(recipe), source_of(recipe, "data.interpolation=nearest")
    assert first.fingerprint() == second.fingerprint()
    scaled = copy(first)
    scaled.scaling_factor = 2 * first.scaling_factor
    keys = [source.keys([0])[0].key for source in (first, second, scaled, source_of(recipe))]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


def test_another_autoencoder_has_latents_of_its_own(recipe: Path, tmp_path: Path):
    first = source_of(recipe)
    other = tmp_path / "other"
    shutil.copytree(resolve_model("vega-mini"), other)
    (file,) = (other / "vae").glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, file)
    second = source_of(recipe, f"model.weights.vae={other}")
    assert second.fingerprint() != first.fingerprint()
    assert len({path.parent.name for path in (tmp_path / "home/images").glob("*/rows.f16")}) == 6
    for mine, theirs in zip(first.buckets, second.buckets, strict=True):
        assert not np.array_equal(mine.posteriors, theirs.posteriors)


def test_a_run_on_pictures_trains_resumes_and_notices_other_pictures(
    recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", str(recipe), "--run-name", "straight"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "steps=2"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut"]) == 0
    weights = [RunDirectory(name).ema / "unet/diffusion_pytorch_model.safetensors" for name in ("straight", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    capsys.readouterr()
    paint(folder / "1.png", (300, 310), "pink")
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "steps=4"]) == 2
    assert "data: other samples" in capsys.readouterr().err


def test_sizes_that_do_not_fit_are_one_line(recipe: Path):
    with pytest.raises(InvalidValue, match="data.bucket_step_px: 16 .* a multiple of 32"):
        source_of(recipe, "data.bucket_step_px=16")
    with pytest.raises(VegaError, match="data.bucket_step_px: 48 .* a divisor"):
        TrainRecipe.read(recipe, ["data.bucket_step_px=48"])
    with pytest.raises(VegaError, match="scene_images for objective autoencoding"):
        TrainRecipe.read(recipe, ['objective={ kind = "autoencoding" }', 'model.train=["vae"]'])
