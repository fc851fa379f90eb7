"""The case `full-shape` on a tiny folder: what the command says of itself is what is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vega_diffusion.benchmarks import full_shape, speed
from vega_diffusion.benchmarks.random_int8 import layers_left_out
from vega_diffusion.inference import engine as engine_module
from vega_diffusion.inference.backends.faults import BackendFault
from vega_diffusion.inference.engine import Engine


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["exact", "balanced"])
def test_memory_and_seconds_to_the_first_step(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: full_shape.ProfileName
) -> None:
    if profile != "exact":
        pytest.importorskip("openvino")
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    found = full_shape.measure(str(tiny_folder), size=64, profile=profile)
    assert found.name == ("" if profile == "exact" else f"balanced-{found.summary['precision']}-64")
    assert 0 < found.samples["first_step_s"][0] < found.samples["wall_s"][0]
    assert found.samples["peak_bytes"][0] > 50e6
    assert [bar.unit for bar in found.bars] == (["GB"] if profile == "exact" else ["s"])
    assert (list((tmp_path / "openvino").glob("bundle-*")) == []) == (profile == "exact")


@pytest.mark.slow
def test_int8_is_made_with_the_layers_of_a_calibrated_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    with pytest.raises(BackendFault, match="unet"):
        full_shape.measure(str(tiny_folder), size=64, profile="balanced", precision="int8", layers_of=str(tiny_folder))
    monkeypatch.setattr(engine_module, "CALIBRATION_PROMPTS", engine_module.CALIBRATION_PROMPTS[:1])
    Engine.load(str(tiny_folder), device="cpu").calibrate(lambda line: None)
    left_out = layers_left_out(str(tiny_folder))
    assert 0 < len(left_out) == len(set(left_out))
    found = full_shape.measure(
        str(tiny_folder), size=64, profile="balanced", precision="int8", layers_of=str(tiny_folder)
    )
    assert (found.name, found.summary["precision"]) == ("balanced-int8-64", "int8")
    assert 0 < found.samples["first_step_s"][0] < found.samples["wall_s"][0]
    made = [json.loads(path.read_text())["rule"] for path in (tmp_path / "openvino").glob("unet-*/full.json")]
    assert sorted(len(rule.get("left_out", ())) for rule in made) == [0, len(left_out)]
    found = speed.measure(
        (f"{tiny_folder}:openvino:int8", f"{tiny_folder}:torch:fp32"), size_px=64, layers_of=str(tiny_folder)
    )
    assert found.name.endswith(f"-layers-of-{tiny_folder.name}")
    assert found.summary["layers left out of int8"] == f"{len(left_out)}, as of {tiny_folder.name}"
