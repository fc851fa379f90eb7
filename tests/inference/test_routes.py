"""Routes of profiles: which one a machine and a model take, and what is said about those passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vega_diffusion.inference.adapters import Adapters
from vega_diffusion.inference.backends.calibration import Drawn
from vega_diffusion.inference.bundles import keep_for_next_time
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.routes import Routes
from vega_diffusion.specs.profile import PROFILES
from vega_diffusion.specs.request import GenerateRequest


def nothing_drawn(count: int) -> Drawn:
    raise AssertionError("nothing is calibrated here")


def routes_of(components: Components) -> Routes:
    return Routes(components, Adapters(components), nothing_drawn)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def elsewhere(tiny_folder: Path) -> Components:
    """The tiny model on a device that is no CPU, as on an accelerator in float16."""
    here = Components.open(str(tiny_folder), "cpu", "auto", None)
    device = torch.device("meta")
    return Components(here.name, here.folder, here.spec, device, torch.float16, False, here.unet_parameters)


@pytest.mark.parametrize("profile", ["balanced", "turbo", "realtime"])
def test_a_model_on_an_accelerator_stays_there_with_one_line(elsewhere: Components, home: Path, profile: str) -> None:
    opened = routes_of(elsewhere).open(PROFILES[profile], ())
    assert opened.denoiser.in_use.backend == "torch"
    assert (opened.denoiser.in_use.devices, opened.parts) == (("meta",), None)
    assert opened.said() == (f"profile {profile}: openvino bf16: runs on CPUs alone",)
    assert not (home / "openvino").exists()


def test_nothing_is_left_for_a_command_that_would_draw_on_the_cpu_instead(elsewhere: Components, home: Path) -> None:
    request = GenerateRequest(prompt="a cat", profile="balanced").resolved(elsewhere.spec.generation)
    assert keep_for_next_time(elsewhere, request, 1) is None
    assert not (home / "openvino").exists()
