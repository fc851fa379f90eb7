"""The case `full-shape` on a tiny folder: what the command says of itself is what is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from vega_diffusion.benchmarks import full_shape


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
