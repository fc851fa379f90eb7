"""What tells evaluations apart: their folders are never shared by two ways of drawing."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vega_diffusion.evaluation.evaluate import EvaluationRequest, _prepared
from vega_diffusion.evaluation.suites import read_suite
from vega_diffusion.evaluation.workers import DrawSettings
from vega_diffusion.specs import profile
from vega_diffusion.specs.profile import PROFILES, ProfileName


def test_a_profile_that_has_changed_is_evaluated_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    turbo = PROFILES["turbo"]
    monkeypatch.setitem(PROFILES, "turbo", turbo.model_copy(update={"routes": turbo.routes[-1:]}))  # converts nothing

    def name(chosen: ProfileName) -> str:
        request = EvaluationRequest("vega-mini", settings=DrawSettings(profile=chosen), device="cpu")
        return _prepared(request, read_suite("scenes", "dev"))[1].folder_name

    before, exact = name("turbo"), name("exact")
    assert name("turbo") == before != exact
    monkeypatch.setattr(profile, "REUSE_FROM", 0.4)
    assert name("turbo") not in (before, exact)
    assert name("exact") == exact


def test_another_tiny_autoencoder_is_evaluated_anew_where_it_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    realtime = PROFILES["realtime"]
    monkeypatch.setitem(PROFILES, "realtime", realtime.model_copy(update={"routes": realtime.routes[-1:]}))
    model = Path(shutil.copytree(str(files("vega_diffusion") / "assets" / "vega-mini"), tmp_path / "model"))

    def name(chosen: ProfileName) -> str:
        request = EvaluationRequest(str(model), settings=DrawSettings(profile=chosen), device="cpu")
        return _prepared(request, read_suite("scenes", "dev"))[1].folder_name

    before, exact = name("realtime"), name("exact")
    (weights,) = (model / "vae_tiny").glob("*.safetensors")
    save_file({key: value + 0.5 for key, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert name("realtime") != before
    assert name("exact") == exact
