"""Cuts and mirrorings: each with its own crop condition, spread evenly, encoded once, drawn anew at every step."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from own_pictures import source_of
from vega_diffusion.data.image_latents import ImageLatents
from vega_diffusion.data.picture_index import Picture, opened
from vega_diffusion.data.picture_views import View, middle_of, pixels_of, time_ids, views_of
from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe

RECIPE = """
steps = 3
batch_size = 4
micro_batch_size = 4
[model]
base = "vega-mini"
train = ["unet"]
weights = { vae = "vega-mini", text_encoder = "vega-mini", text_encoder_2 = "vega-mini", unet = "vega-mini" }
[data]
kind = "image_latents"
folder = "FOLDER"
resolution_px = 128
bucket_step_px = 32
max_aspect = 1.0
empty_caption_rate = 0.0
[objective]
kind = "denoising"
"""


def noise_picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        noise_picture((150 + 20 * number, 140), number).save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "text": f"{number} apples"} for number in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "pictures.toml"
    file.write_text(RECIPE.replace("FOLDER", str(folder)))
    return file


def test_a_view_is_that_part_of_the_scaled_picture():
    picture = noise_picture((60, 40))
    plain = pixels_of(png(picture), (32, 32), View((60, 40), 5, 20))
    wanted = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(plain, wanted[:, 5:37, 20:52])
    mirrored = pixels_of(png(picture), (32, 32), View((60, 40), 5, 20, True))
    torch.testing.assert_close(mirrored, wanted.flip(2)[:, 5:37, 20:52])


@pytest.mark.parametrize(("interpolation", "same"), [("lanczos", True), ("nearest", False)])
def test_interpolation_is_what_the_spec_says(interpolation: str, same: bool):
    content = png(noise_picture((60, 40)))
    assert torch.equal(pixels_of(content, (32, 32)), pixels_of(content, (32, 32), None, interpolation)) == same


@pytest.mark.parametrize(("rate", "mirrored"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_mirrorings_are_spread_evenly_over_the_variants(rate: float, mirrored: int):
    spec = ImageLatentsSpec(folder="f", flip_rate=rate, crop="random", variants=8)
    for name in "abcde":
        views = views_of(Picture(0, name, "a", (300, 200), name, 0), (128, 128), spec)
        assert sum(view.mirrored for view in views) == mirrored
        assert all(0 <= view.left <= view.scaled[0] - 128 and 0 <= view.top <= view.scaled[1] - 128 for view in views)
    assert len({view.left for view in views}) > 4


def test_views_are_a_function_of_seed_and_file():
    spec = ImageLatentsSpec(folder="f", crop="random", variants=4)
    picture = Picture(0, "a", "a", (300, 200), "hash", 0)
    assert views_of(picture, (128, 128), spec) == views_of(picture, (128, 128), spec)
    assert views_of(picture, (128, 128), spec.model_copy(update={"seed": 1})) != views_of(picture, (128, 128), spec)
    assert len(set(views_of(picture, (128, 128), ImageLatentsSpec(folder="f")))) == 1


def test_the_crop_condition_is_that_of_the_latents(recipe: Path, tmp_path: Path):
    source = source_of(recipe, "data.crop=random", "data.flip_rate=0.5", "data.variants=6")
    assert isinstance(source, ImageLatents)
    vae = source_vae()
    seen = set()
    for start in range(0, 32, 4):
        batch = source.load(range(start, start + 4))
        for row, name in enumerate(batch.sample_ids):
            ids = batch.tensors["time_ids"][row].tolist()
            seen.add((name, *ids))
    assert len(seen) > 12  # several cuts of each of four pictures come up
    (bucket,) = source.buckets
    views = [
        (source.index.pictures[n], view) for n, some in zip(bucket.numbers, bucket.views, strict=True) for view in some
    ]
    assert seen <= {(picture.name, *time_ids(picture, bucket.size, view)) for picture, view in views}
    for item, views in enumerate(bucket.views):
        picture = source.index.pictures[bucket.numbers[item]]
        for variant, view in enumerate(views):
            with torch.no_grad():
                pixels = pixels_of(source.index.read(picture), bucket.size, view)
                found = vae.encode(pixels[None]).latent_dist
            stored = torch.from_numpy(np.array(bucket.posteriors[bucket.rows[item][variant]])).float()
            torch.testing.assert_close(stored, torch.cat([found.mean, found.std]), rtol=1e-2, atol=1e-2)


def source_vae() -> Any:
    from vega_diffusion.models.checkpoint import load_autoencoder

    home = resolve_model("vega-mini")
    return load_autoencoder(home, load_spec(home).autoencoder, torch.float32)


def test_plain_pictures_keep_the_latents_they_had(recipe: Path, tmp_path: Path):
    def sizes() -> list[int]:
        return [path.stat().st_size for path in (tmp_path / "home/images").glob("*/rows.f16")]

    source_of(recipe)
    (before,) = sizes()
    first = source_of(recipe, "data.flip_rate=0.5", "data.variants=2")
    assert sizes() == [2 * before]  # only the mirrored halves are new
    again = source_of(recipe, "data.flip_rate=0.5", "data.variants=2")
    assert sizes() == [2 * before]
    assert first.fingerprint() == again.fingerprint() != source_of(recipe).fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.variants=3"], "data.variants: 3 .* 1 without random crops or flips"),
        (["data.flip_rate=1.5"], "data.flip_rate: 1.5"),
        (["data.crop=left"], "data.crop: 'left'"),
        (["data.interpolation=box2"], "data.interpolation: 'box2'"),
        (["data.max_pictures=0"], "data.max_pictures: 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(recipe: Path, changes: list[str], message: str):
    with pytest.raises(InvalidValue, match=message):
        TrainRecipe.read(recipe, changes)


def test_one_caption_for_all_and_a_number_of_pictures(recipe: Path):
    source = source_of(recipe, "data.caption=a photo of sks", "data.max_pictures=2")
    assert [picture.caption for picture in source.index.pictures] == ["a photo of sks"] * 2
    other = source_of(recipe, "data.caption=a photo of sks", "data.max_pictures=2", "data.seed=5")
    assert len(other.index.pictures) == 2
    names = [{picture.name for picture in one.index.pictures} for one in (source, other)]
    assert names[0] <= {f"{number}.png" for number in range(4)}


def test_pictures_are_held_out_and_never_trained_on(recipe: Path):
    source = source_of(recipe, "samples.num_held_out=1", "data.flip_rate=0.5", "data.variants=2")
    (apart,) = source.held_out.index.pictures
    assert apart.name not in {
        name for start in range(0, 40, 4) for name in source.load(range(start, start + 4)).sample_ids
    }
    assert source.held_out.spec.variants == 1
    assert not source.held_out.spec.flip_rate
    with pytest.raises(InvalidValue, match=r"samples.num_held_out: 4 .* fewer than the 4 pictures"):
        source_of(recipe, "samples.num_held_out=4")


@pytest.mark.parametrize("mode", ["CMYK", "L", "LA", "P", "1", "RGBA", "I;16"])
def test_every_kind_of_picture_is_read_as_it_looks(mode: str, tmp_path: Path):
    grey = Image.new("L", (32, 24), 128)
    if mode == "I;16":
        picture = Image.fromarray(np.full((24, 32), 128 * 257, dtype=np.uint16))
        assert picture.mode.startswith("I")
    else:
        picture = grey.convert(mode)
    path = tmp_path / f"one.{'tif' if mode == 'CMYK' else 'png'}"
    picture.save(path)
    seen = np.asarray(opened(path.read_bytes())).astype(int)
    assert seen.shape == (24, 32, 3)
    if mode != "1":
        assert abs(seen - 128).max() <= 1


def test_of_an_animation_the_first_picture_is_taken(tmp_path: Path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert opened((tmp_path / "two.gif").read_bytes()).getpixel((8, 8)) == (255, 0, 0)


def test_a_picture_of_one_pixel_fills_its_bucket():
    view = middle_of((1, 1), (128, 128))
    assert pixels_of(png(Image.new("RGB", (1, 1), "red")), (128, 128), view).shape == (3, 128, 128)


def test_a_hundred_megapixels_are_a_picture_like_others(tmp_path: Path):
    path = tmp_path / "large.png"
    Image.new("L", (10_000, 10_001), 200).save(path, compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        pixels = pixels_of(path.read_bytes(), (128, 128))
    assert (pixels * 127.5 + 127.5 - 200).abs().max() < 1


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path: Path):
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    picture.save(tmp_path / "palette.png", transparency=1)
    assert opened((tmp_path / "palette.png").read_bytes()).getpixel((3, 3)) == (255, 255, 255)
