"""Cases about the engine, run for real on a tiny model: what a profile costs, what packing gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from vega_diffusion.benchmarks import certify, packing, speed
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.certificates import FOLDER
from vega_diffusion.specs.certificate import Certificate


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the profile's last route: converting is tested where the backends are."""
    from vega_diffusion.specs.profile import PROFILES

    torch_alone = PROFILES["turbo"].model_copy(update={"routes": PROFILES["turbo"].routes[-1:]})
    monkeypatch.setitem(PROFILES, "turbo", torch_alone)


@pytest.mark.usefixtures("only_torch")
def test_a_certificate_is_measured_and_kept(tiny_folder: Path, home: Path):
    found = certify.measure("turbo", str(tiny_folder), prompts=3, repeats=5, ruler=False)
    (file,) = (home / FOLDER).rglob("*.json")
    certificate = Certificate.from_json(file.read_text())
    assert (certificate.profile, certificate.backend, certificate.precision) == ("turbo", "torch", "fp32")
    assert certificate.model == tiny_folder.name
    assert (certificate.num_prompts, certificate.following_change) == (3, None)
    assert found.name == "turbo-torch-fp32-full"
    assert len(found.samples["exact_wall_s"]) == len(found.samples["turbo_wall_s"]) == 5
    cosines = found.samples["latent_cosine"]
    assert len(cosines) == 3
    assert max(cosines) < 1 - 1e-6  # something was left out, and it shows
    assert min(cosines) == pytest.approx(certificate.latent_cosine_min, abs=1e-4)
    assert found.bars == ()  # goals are for what the ruler measures
    assert "not measured" in str(certificate)


def test_exact_and_too_many_prompts_are_refused(tiny_folder: Path):
    with pytest.raises(InvalidValue, match="exact needs no certificate"):
        certify.measure("exact", str(tiny_folder))
    with pytest.raises(InvalidValue, match="--prompts"):
        certify.measure("turbo", str(tiny_folder), prompts=100_000)


def test_packing_is_timed_beside_one_at_a_time(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    few = [request.model_copy(update={"num_steps": 2}) for request in packing.mixed_requests("exact")[:3]]
    monkeypatch.setattr(packing, "mixed_requests", lambda profile: few)
    found = packing.measure(str(tiny_folder), max_rows=6)
    assert found.name == "torch-fp32"
    assert set(found.samples) == {
        f"{way}_{clock}_s" for way in ("one_at_a_time", "packed", "fixed_rows") for clock in ("wall", "cpu")
    }
    assert [bar.limit for bar in found.bars] == [1.7, 1]
    assert found.bars[1].met


def test_mixed_requests_differ_in_all_that_may_differ():
    requests = packing.mixed_requests("exact")
    assert len(requests) == 8
    for field in ("num_steps", "guidance_scale", "sampler", "seed", "prompt"):
        assert len({getattr(request, field) for request in requests}) > 2


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("vega", "vega:torch:own"),
        ("vega:openvino", "vega:openvino:own"),
        ("vega:openvino:int8", "vega:openvino:int8"),
    ],
)
def test_contestants_are_read_from_text(text: str, read: str):
    assert str(speed.Contestant.parse(text)) == read


@pytest.mark.parametrize("text", ["", "vega:", "a:b:c:d", ":torch"])
def test_what_is_no_contestant_is_refused(text: str):
    with pytest.raises(InvalidValue, match="contestants"):
        speed.Contestant.parse(text)


def test_unets_are_timed_in_turn_and_told_as_they_ran():
    found = speed.measure(("vega-mini", "mini-sdxl:torch:fp32"), size_px=64)
    assert found.name == "vega-mini-torch-own-64"
    assert found.summary["vega-mini:torch:own in use"] == "torch fp32"
    assert float(found.summary["vega-mini:torch:own against mini-sdxl:torch:fp32"]) > 0
    assert len(found.samples["mini-sdxl:torch:fp32 cpu_s"]) == 5
    with pytest.raises(InvalidValue, match="two or more"):
        speed.measure(("vega-mini", "vega-mini:torch:own"))
