"""Certificates: found by weights and route alone, damaged ones do not count, a profile without one says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_certificate import MADE
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.certificates import find_certificate, keep_certificate
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.engine import Engine
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.certificate import Certificate
from vega_diffusion.specs.profile import PROFILES
from vega_diffusion.specs.request import GenerateRequest

ROUTE = ("turbo", "torch", "fp32", "full")


def found(
    folder: Path, digest: str = "a" * 64, route: tuple[str, str, str, str] = ROUTE, tiny: str | None = None
) -> Certificate | None:
    return find_certificate(folder, digest, *route, tiny)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("beside_the_weights", [True, False])
def test_what_was_kept_is_found_and_the_newest_counts(tmp_path: Path, beside_the_weights: bool):
    model = tmp_path / "model"
    folder = model if beside_the_weights else None
    keep_certificate(MADE, folder)
    assert found(model) == MADE
    newer = MADE.model_copy(update={"speedup": 3.0, "finished": "2026-02-01T00:00:00+00:00", "hardware": "other"})
    keep_certificate(newer, folder)
    assert found(model) == newer
    keep_certificate(MADE.model_copy(update={"speedup": 4.0}), folder)  # replaces the one of its machine
    assert found(model) == newer
    assert len(list((tmp_path).rglob("*.json"))) == 2


@pytest.mark.parametrize(
    ("digest", "route"),
    [
        ("b" * 64, ROUTE),
        ("a" * 64, ("balanced", *ROUTE[1:])),
        ("a" * 64, ("turbo", "openvino", "fp32", "full")),
        ("a" * 64, ("turbo", "torch", "bf16", "full")),
        ("a" * 64, ("turbo", "torch", "fp32", "tiny")),
    ],
)
def test_a_certificate_holds_for_its_weights_and_route_alone(
    tmp_path: Path, digest: str, route: tuple[str, str, str, str]
):
    keep_certificate(MADE, tmp_path)
    assert found(tmp_path, digest, route) is None


def test_a_certificate_holds_for_the_tiny_autoencoder_that_decoded(tmp_path: Path):
    keep_certificate(MADE.model_copy(update={"decoder": "tiny", "tiny_digest": "c" * 64}), tmp_path)
    route = (*ROUTE[:3], "tiny")
    assert found(tmp_path, route=route, tiny="c" * 64) is not None
    assert found(tmp_path, route=route, tiny="d" * 64) is None
    keep_certificate(MADE, tmp_path)
    assert found(tmp_path, tiny="d" * 64) == MADE, "where the full one decodes, the tiny one is no matter"


def test_a_quick_measurement_does_not_hide_a_better_one(tmp_path: Path):
    ruled = {"following_change": 0.01, "following_low": -0.01, "following_high": 0.02}
    test = MADE.model_copy(update=ruled | {"following_split": "test"})
    dev = MADE.model_copy(update=ruled | {"following_split": "dev", "finished": "2026-03-01T00:00:00+00:00"})
    drift = MADE.model_copy(update={"finished": "2026-04-01T00:00:00+00:00"})
    for one in (test, dev, drift):
        keep_certificate(one, tmp_path)
    assert found(tmp_path) == test
    assert len(list(tmp_path.rglob("*.json"))) == 3


def test_a_profile_that_has_changed_since_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keep_certificate(MADE, tmp_path)
    monkeypatch.setitem(PROFILES, "turbo", PROFILES["turbo"].model_copy(update={"reuse": 3}))
    assert found(tmp_path) is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"profile": "turbo"}', b"\xff\xfe"])
def test_a_damaged_file_is_no_certificate(tmp_path: Path, damage: bytes):
    path = keep_certificate(MADE, tmp_path)
    path.write_bytes(damage)
    assert found(tmp_path) is None


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "certificates").write_text("a file in the way")
    with pytest.raises(VegaError, match=r"turbo-torch-fp32-full-drift-2-core-test.json: cannot be written"):
        keep_certificate(MADE, tmp_path)


def test_a_certificate_says_on_which_prompts_it_was_measured():
    measured = {"following_change": 0.01, "following_low": -0.01, "following_high": 0.02}
    for split in ("dev", "test"):
        line = f"following    +1.0 points (-1.0 to +2.0), scenes-{split}"
        assert line in str(MADE.model_copy(update={**measured, "following_split": split}))
    written = MADE.to_json()
    assert '"following_split": "dev"' in written or '"following_split":"dev"' in written
    assert type(MADE).from_json(written.replace('"dev"', '"test"')).following_split == "test"


def short(spec: ModelSpec) -> ModelSpec:
    """A model whose own number of steps is 2: a certificate holds for no other."""
    return spec.model_copy(update={"generation": spec.generation.model_copy(update={"num_steps": 2})})


def test_a_profile_runs_with_a_warning_until_it_is_certified(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    torch_alone = PROFILES["turbo"].model_copy(update={"routes": PROFILES["turbo"].routes[-1:]})  # converts nothing
    monkeypatch.setitem(PROFILES, "turbo", torch_alone)
    engine = Engine(Components.open(str(tiny_folder), "cpu", "float32", None))
    monkeypatch.setattr(engine.components, "spec", short(engine.components.spec))
    request = GenerateRequest(prompt="a cat", seed=1, profile="turbo")
    (picture,) = engine.generate(request)
    uncertified = [line for line in picture.warnings if "not certified" in line]
    assert len(uncertified) == 1
    assert "vega benchmark certify" in uncertified[0]
    in_use = engine.route_of(request)
    route = {"backend": in_use.backend, "precision": in_use.precision, "model_digest": engine.components.digest}
    keep_certificate(MADE.model_copy(update=route))
    (picture,) = engine.generate(request)
    assert not any("not certified" in line for line in picture.warnings)
    changed = request.model_copy(update={"reuse": 8, "guidance_interval": (0.0, 0.3)})
    (other,) = engine.generate(changed)
    (line,) = (line for line in other.warnings if "certificate does not hold" in line)
    assert "with guidance_interval, reuse as this request has it" in line
    assert (picture.record.backend, picture.record.precision) == (in_use.backend, in_use.precision)
    assert picture.record.request.profile == "turbo"
    for high, told in ((0.01, False), (-0.02, True)):
        measured = {"following_change": -0.054, "following_low": -0.1, "following_high": high}
        keep_certificate(MADE.model_copy(update=route | measured))
        (picture,) = engine.generate(request)
        assert any("5.4 points less than exact does (-10.0 to -2.0)" in line for line in picture.warnings) == told
    (exact,) = engine.generate(request.model_copy(update={"profile": None}))
    assert exact.warnings == ()
    assert (exact.record.request.profile, exact.record.backend, exact.record.decoder) == ("exact", "torch", "full")
