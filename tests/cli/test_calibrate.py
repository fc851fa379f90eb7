"""`vega calibrate`: profiles draw in int8 from then on, with torch and without, and say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import astuple
from io import StringIO
from pathlib import Path
from typing import Any

import numpy
import pytest

from tiny_backends import TINY_RULE
from vega_diffusion.benchmarks import full_shape, speed
from vega_diffusion.benchmarks.random_int8 import layers_left_out
from vega_diffusion.cli.main import main
from vega_diffusion.inference import engine as engine_module
from vega_diffusion.inference.backends.faults import BackendFault
from vega_diffusion.inference.backends.protocol import InUse
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.inference.bundles import keep_for_next_time
from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.lean.engine import LeanEngine
from vega_diffusion.models.home import vega_home
from vega_diffusion.specs.profile import PROFILES
from vega_diffusion.specs.request import GenerateRequest

pytest.importorskip("openvino")
pytest.importorskip("nncf")
REQUEST = GenerateRequest(prompt="a cat", seed=7, num_steps=5, profile="turbo")


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder, in a home of its own; int8 is made by the smallest rule, by the first test that does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VEGA_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(engine_module, "CALIBRATION_PROMPTS", engine_module.CALIBRATION_PROMPTS[:1])
        patch.setattr(QuantisationRule.__init__, "__defaults__", astuple(TINY_RULE))
        yield Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def calibrated(folder: Path) -> dict[str, Any]:
    """What `vega calibrate --json` says when it has made int8, and a picture drawn before."""
    with pytest.raises(BackendFault, match="unet"):
        layers_left_out(str(folder))
    (before,) = Engine.load(str(folder), device="cpu").generate(REQUEST)
    assert before.record.precision in ("fp32", "bf16")
    assert not any("openvino int8" in line for line in before.warnings), "nobody asked for it"
    said = StringIO()
    with redirect_stdout(said):
        assert main(["calibrate", str(folder), "--json"]) == 0
    return {"before": before, **json.loads(said.getvalue().splitlines()[-1])}


@pytest.mark.slow
def test_profiles_draw_in_int8_once_it_is_made(
    folder: Path, calibrated: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrated["profiles"] == ["turbo", "realtime"]
    assert list(calibrated["parts"]) == ["unet", "vae-decoder"]
    for part in calibrated["parts"].values():
        assert Path(part["folder"]).is_dir()
        assert 0 <= part["work_in_wide_numbers"] <= 0.5
    engine = Engine.load(str(folder), device="cpu")
    (after,) = engine.generate(REQUEST)
    assert (after.record.backend, after.record.precision) == ("openvino", "int8")
    opened = engine.routes.open(PROFILES["turbo"], ()).parts
    assert opened is not None
    assert opened.vae().decoder.in_use == InUse("openvino", "int8", True, ("CPU",))
    assert [line for line in after.warnings if "not certified for these weights on openvino int8" in line]
    assert numpy.any(numpy.asarray(after.image) != numpy.asarray(calibrated["before"].image)), (
        "it is really other numbers"
    )

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


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated")
def test_random_weights_leave_int8_where_a_calibrated_model_does(folder: Path) -> None:
    left_out = layers_left_out(str(folder))
    assert 0 < len(left_out) == len(set(left_out))
    found = full_shape.measure(str(folder), size=64, profile="balanced", precision="int8", layers_of=str(folder))
    assert (found.name, found.summary["precision"]) == ("balanced-int8-64", "int8")
    assert 0 < found.samples["first_step_s"][0] < found.samples["wall_s"][0]
    kept = (vega_home() / "openvino").glob("unet-*/full.json")
    made = [json.loads(path.read_text())["rule"] for path in kept]
    assert sorted(len(rule.get("left_out", ())) for rule in made) == [0, len(left_out)]
    found = speed.measure((f"{folder}:openvino:int8", f"{folder}:torch:fp32"), size_px=64, layers_of=str(folder))
    assert found.name.endswith(f"-layers-of-{folder.name}")
    assert found.summary["layers left out of int8"] == f"{len(left_out)}, as of {folder.name}"


def test_a_model_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
