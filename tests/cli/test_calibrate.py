"""`vega calibrate`: profiles draw in int8 from then on, with torch and without, and say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import astuple
from pathlib import Path

import numpy
import pytest

from tiny_backends import TINY_RULE
from vega_diffusion.cli.main import main
from vega_diffusion.inference import engine as engine_module
from vega_diffusion.inference.backends.protocol import InUse
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.inference.bundles import keep_for_next_time
from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.lean.engine import LeanEngine
from vega_diffusion.specs.profile import PROFILES
from vega_diffusion.specs.request import GenerateRequest

pytest.importorskip("openvino")
pytest.importorskip("nncf")
REQUEST = GenerateRequest(prompt="a cat", seed=7, num_steps=5, profile="turbo")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder and a home of the test's own; int8 is made by the smallest rule."""
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(engine_module, "CALIBRATION_PROMPTS", engine_module.CALIBRATION_PROMPTS[:1])
    monkeypatch.setattr(QuantisationRule.__init__, "__defaults__", astuple(TINY_RULE))
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.mark.slow
def test_profiles_draw_in_int8_once_it_is_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (before,) = Engine.load(str(folder), device="cpu").generate(REQUEST)
    assert before.record.precision in ("fp32", "bf16")
    assert not any("openvino int8" in line for line in before.warnings), "nobody asked for it"
    assert main(["calibrate", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["profiles"] == ["turbo", "realtime"]
    assert list(report["parts"]) == ["unet", "vae-decoder"]
    for part in report["parts"].values():
        assert Path(part["folder"]).is_dir()
        assert 0 <= part["work_in_wide_numbers"] <= 0.5
    engine = Engine.load(str(folder), device="cpu")
    (after,) = engine.generate(REQUEST)
    assert (after.record.backend, after.record.precision) == ("openvino", "int8")
    opened = engine.routes.open(PROFILES["turbo"], ()).parts
    assert opened is not None
    assert opened.vae().decoder.in_use == InUse("openvino", "int8", True, ("CPU",))
    assert [line for line in after.warnings if "not certified for these weights on openvino int8" in line]
    assert numpy.any(numpy.asarray(after.image) != numpy.asarray(before.image)), "it is really other numbers"

    assert keep_for_next_time(engine.components, after.record.request, 1) is None
    lean = LeanEngine.open(str(folder), REQUEST)
    assert lean is not None
    (without_torch,) = lean.stream(REQUEST)
    assert without_torch.record == after.record
    apart = numpy.asarray(without_torch.image, int) - numpy.asarray(after.image, int)
    # A last bit that differs turns single roundings, and those turn others, up to the noise of 8 bits itself.
    assert abs(apart).mean() < 1.5
    assert abs(apart).max() <= 32

    assert main(["calibrate", str(folder)]) == 0, "a second time nothing is made"
    told = capsys.readouterr().out
    assert "turbo, realtime draw with it from now on" in told
    assert "of its work stays in wide numbers" in told


def test_a_model_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
