"""`vega generate --lora`: several at once, recorded with their hashes, repeated by `--from`, refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image

from tiny_lora import random_lora
from vega_diffusion.cli.main import main
from vega_diffusion.inference.metadata import read_record
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.digest import file_digest
from vega_diffusion.models.lora_file import write_lora
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_weights import arrange


@pytest.fixture
def model(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model; the current folder holds `unet.safetensors` and, in diffusers' folder, `text/`."""
    monkeypatch.chdir(tmp_path)
    tree = MapTree.of_spec(load_spec(tiny_folder))
    write_lora(Path("unet.safetensors"), arrange(random_lora(tree, ["unet"], size=0.4), "kohya", tree))
    text = arrange(random_lora(tree, ["text_encoder"], seed=1), "diffusers", tree)
    write_lora(Path("text/pytorch_lora_weights.safetensors"), text)
    return str(tiny_folder)


def draw(model: str, output: str, *arguments: str) -> numpy.ndarray:
    base = ["generate", "a cat", "--model", model, "--num-steps", "2", "--guidance-scale", "1", "--seed", "3"]
    assert main([*base, "--output", output, *arguments]) == 0
    return pixels(output)


def pixels(output: str) -> numpy.ndarray:
    with Image.open(output) as image:
        return numpy.asarray(image).astype(int)


def test_several_loras_are_drawn_recorded_and_repeated(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = draw(model, "plain.png")
    both = draw(model, "both.png", "--lora", "unet.safetensors@0.8", "--lora", "text")
    one = draw(model, "one.png", "--lora", "unet.safetensors@0.8")
    assert abs(both - plain).max() > 3
    assert abs(both - one).max() > 3
    assert numpy.array_equal(draw(model, "none.png", "--lora", "unet.safetensors@0", "--lora", "text@0"), plain)
    record = read_record(Path("both.png"))
    assert record.request.loras == ("unet.safetensors@0.8", "text")
    assert record.loras_sha256 == tuple(
        file_digest(Path(name)) for name in ("unet.safetensors", "text/pytorch_lora_weights.safetensors")
    )
    with Image.open("both.png") as image:
        assert "LoRAs: unet.safetensors@0.8 + text@1, Version" in image.info["parameters"]
    assert main(["generate", "--from", "both.png", "--output", "again.png"]) == 0
    assert numpy.array_equal(pixels("again.png"), both)
    assert main(["generate", "--from", "both.png", "--lora", "unet.safetensors@0.8", "--output", "less.png"]) == 0
    assert numpy.array_equal(pixels("less.png"), one)
    Path("unet.safetensors").write_bytes(Path("text/pytorch_lora_weights.safetensors").read_bytes())
    capsys.readouterr()
    assert main(["generate", "--from", "both.png", "--output", "changed.png"]) == 2
    assert "loras: 'unet.safetensors' has changed since" in capsys.readouterr().err
    assert not Path("changed.png").exists()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("nothing.safetensors", "loras: 'nothing.safetensors' is no file"),
        ("unet.safetensors@heavy", "loras: 'unet.safetensors@heavy'"),
        ("unet.safetensors@99", "a weight from -10 to 10"),
        ("MODEL/unet/diffusion_pytorch_model.safetensors", "is no part of a LoRA"),
    ],
)
def test_mistakes_are_one_line(model: str, lora: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "a cat", "--model", model, "--output", "it.png", "--lora", lora.replace("MODEL", model)]
    assert main(arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert message in err[0]


def test_a_lora_of_another_model_is_counted(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a cat", "--lora", "unet.safetensors", "--output", "it.png"]) == 2
    assert "0 of 120 adapters fit vega-mini; not: lora_unet_" in capsys.readouterr().err
