"""The block diagram: what its panels hold, when two networks share one, and that the file is whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from vega_diffusion.errors import InvalidValue, Unavailable, VegaError
from vega_diffusion.models.figure import draw_figure, is_cut_from, panels
from vega_diffusion.specs.presets import MINI_SDXL, SD_1_5, SDXL, SSD_1B, VEGA, VEGA_MINI, preset


def dropped(name: str) -> tuple[int, int]:
    """Transformer blocks and ResNet blocks of SDXL that a model lacks, counted in the drawing's own cells."""
    rows = [row for panel in panels(preset(name).unet, SDXL.unet).values() for row in panel.rows]
    transformers = sum(row.reference_depth - row.depth for row in rows)
    return transformers, sum(not row.has_resnet for row in rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sdxl", (0, 0)), ("ssd-1b", (36, 1)), ("vega", (55, 1)), ("koala-1b", (40, 6)), ("koala-700m", (49, 8))],
)
def test_the_drawing_shows_as_many_dropped_blocks_as_there_are(name: str, expected: tuple[int, int]) -> None:
    assert dropped(name) == expected


def test_panels_state_channels_resolution_and_parameters() -> None:
    drawn = panels(VEGA.unet, SDXL.unet)
    assert list(drawn)[:3] == ["down_blocks.0", "down_blocks.1", "down_blocks.2"]
    assert (drawn["down_blocks.2"].channels, drawn["down_blocks.2"].scale) == (1280, 4)
    assert (drawn["up_blocks.0"].channels, drawn["up_blocks.2"].scale) == (1280, 1)
    assert drawn["mid_block"].parameters == 31_138_560
    assert drawn["mid_block"].reference_parameters == 413_117_440
    samplers = {name: panel.sampler for name, panel in drawn.items() if panel.sampler}
    assert samplers == {"down_blocks.0": "down", "down_blocks.1": "down", "up_blocks.0": "up", "up_blocks.1": "up"}


def test_only_a_part_of_the_reference_shares_its_diagram() -> None:
    assert all(is_cut_from(preset(name).unet, SDXL.unet) for name in ("sdxl", "ssd-1b", "vega", "koala-700m"))
    assert is_cut_from(VEGA_MINI.unet, MINI_SDXL.unet)
    assert not is_cut_from(SD_1_5.unet, SDXL.unet)
    assert not is_cut_from(SDXL.unet, VEGA.unet)
    assert not is_cut_from(VEGA_MINI.unet, SDXL.unet)
    # What progressive removal would leave: Vega lies inside SSD-1B too.
    assert is_cut_from(VEGA.unet, SSD_1B.unet)
    assert not is_cut_from(preset("koala-1b").unet, SSD_1B.unet)


def test_a_png_is_drawn_with_all_its_colours(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "vega.png"
    draw_figure(VEGA, SDXL, path)
    with Image.open(path) as image:
        assert image.width > 1500
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    for wanted in ("2f6fdb", "8a94a6", "f6c9c0", "c9b458"):
        assert tuple(bytes.fromhex(wanted)) in colours
    assert [item.name for item in tmp_path.iterdir()] == ["vega.png"]


def test_an_svg_of_a_model_alone_shows_no_dropped_blocks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    alone, beside = tmp_path / "alone.svg", tmp_path / "beside.svg"
    draw_figure(SD_1_5, SDXL, alone)
    draw_figure(VEGA_MINI, MINI_SDXL, beside)
    assert "#f6c9c0" not in alone.read_text()
    assert "#f6c9c0" in beside.read_text()


def test_a_bad_place_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InvalidValue, match=r"\.png"):
        draw_figure(VEGA_MINI, MINI_SDXL, tmp_path / "figure.gif")
    with pytest.raises(VegaError, match="cannot be written"):
        draw_figure(VEGA_MINI, MINI_SDXL, tmp_path / "nowhere" / "figure.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unavailable, match=r"vega-diffusion\[plots\]"):
        draw_figure(VEGA_MINI, MINI_SDXL, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
