"""`vega inspect`: the promised keys and figures, the table, the figure, and one line for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vega_diffusion.cli.main import main
from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import VEGA_MINI


def inspect_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["inspect", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_vega_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspect_json(capsys, "vega")
    assert report["unet_parameters"] == 745_225_604
    assert report["transformer_blocks"] == 15
    assert report["resnets"] == 16
    assert round(report["gmacs_512"], 1) == 331.4
    assert round(report["gmacs_1024"], 1) == 1411.2
    assert sum(report["blocks"].values()) == report["unet_parameters"]
    assert report["blocks"]["mid_block"] == 31_138_560
    assert report["layers"]["up_blocks.0"]["transformer_blocks"] == [2, 2, 2]
    assert report["text_encoder_parameters"] == 123_060_480
    assert report["text_encoder_2_parameters"] == 694_659_840
    assert report["vae_parameters"] == 83_653_863
    assert report["generation"]["guidance_scale"] == 9.0
    assert report["spec"]["unet"]["mid_block_type"] == "UNetMidBlock2D"


def test_the_table_stands_beside_sdxl(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "vega"]) == 0
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in out.splitlines() if line.strip()}
    assert lines["U-Net parameters"].split()[-3:] == ["745,225,604", "2,567,463,684", "29.0%"]
    assert lines["GMACs at 1024 px"].split()[-3:] == ["1,411.2", "3,380.6", "41.7%"]
    assert "2+2+2  (of 10+10+10)" in lines["up_blocks.0"]
    assert "worst quality" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("generation")) <= 110


def test_a_model_without_second_encoder_or_mid_block(capsys: pytest.CaptureFixture[str]) -> None:
    report = inspect_json(capsys, "sd-1.5")
    assert report["unet_parameters"] == 859_520_964
    assert report["text_encoder_2_parameters"] is None
    assert main(["inspect", "koala-700m"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[1] for line in table.splitlines() if line.startswith("mid_block")] == ["-"]


@pytest.fixture
def described_folder(tmp_path: Path) -> Path:
    """A folder of the mini shape with configs and no weights at all: inspecting must not need them."""
    folder = tmp_path / "described"
    with torch.device("meta"):
        build_unet(VEGA_MINI.unet).save_config(folder / "unet")
        build_autoencoder(VEGA_MINI.autoencoder).save_config(folder / "vae")
        for name in ("text_encoder", "text_encoder_2"):
            build_text_encoder(getattr(VEGA_MINI, name)).config.save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "EulerDiscreteScheduler"} | VEGA_MINI.schedule.to_config()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder_2": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_needs_no_weights_and_is_left_as_it_is(
    described_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in described_folder.rglob("*")}
    report = inspect_json(capsys, str(described_folder))
    assert report["model"] == "described"
    assert report["source"] == str(described_folder)
    assert report["unet_parameters"] == inspect_json(capsys, "vega-mini")["unet_parameters"]
    assert {path: path.stat().st_mtime_ns for path in described_folder.rglob("*")} == before


def test_the_figure_is_drawn_beside_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "vega-mini.png"
    report = inspect_json(capsys, "vega-mini", "--figure", str(path))
    assert report["figure"] == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["no-such-model"], "model: 'no-such-model' is not allowed; allowed: vega-mini"),
        (["vega-mini", "--figure", "figure.gif"], "figure: 'figure.gif' is not allowed"),
        (["vega-mini", "--figure", "no/such/folder/figure.png"], "no such folder"),
        (["pyproject.toml"], "pyproject.toml"),
        ([], "Missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *argv]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_a_folder_without_a_component_names_the_file(
    described_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(described_folder / "vae")
    assert main(["inspect", str(described_folder)]) == 2
    captured = capsys.readouterr()
    assert "vae/config.json" in captured.err
    assert captured.out == ""
