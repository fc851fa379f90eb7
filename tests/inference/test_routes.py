"""Routes of profiles: which one a machine and a model take, and what is said about those passed over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch

from vega_diffusion.inference.adapters import Adapters, LoadedLora
from vega_diffusion.inference.backends.calibration import Drawn
from vega_diffusion.inference.backends.protocol import InUse
from vega_diffusion.inference.backends.store import Store
from vega_diffusion.inference.bundles import keep_for_next_time
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.routes import Routes, route_ahead
from vega_diffusion.inference.rules import TILE_PX
from vega_diffusion.inference.vae_policy import planned_tile_px
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


def test_int8_that_was_asked_for_and_is_not_there_is_told(tiny_folder: Path, home: Path) -> None:
    pytest.importorskip("openvino")
    components = Components.open(str(tiny_folder), "cpu", "auto", None)
    profile = PROFILES["balanced"].in_precision("int8")
    first, last = profile.routes[0], profile.routes[-1]  # the routes between would convert
    opened = routes_of(components).open(profile.model_copy(update={"routes": (first, last)}), ())
    assert opened.denoiser.in_use == InUse("torch", "fp32", False, ("cpu",))
    assert opened.said()[0] == "profile balanced: openvino int8: not there; run vega calibrate"


def test_int8_by_name_is_torchs_on_an_accelerator(elsewhere: Components, home: Path) -> None:
    profile = PROFILES["turbo"].in_precision("int8")
    opened = routes_of(elsewhere).open(profile, ())
    assert (opened.denoiser.in_use, opened.parts) == (InUse("torch", "int8", False, ("meta",)), None)
    assert opened.said() == ()
    assert route_ahead(elsewhere, profile, (), lambda line: None) == ("torch", "int8")
    assert "decoder" not in profile.definition("torch", "int8")
    first = elsewhere.unet_in_8_bits()
    assert elsewhere.unet_in_8_bits() is first
    elsewhere.release("unet")
    assert elsewhere.unet_in_8_bits() is not first


def test_torchs_int8_takes_no_loras_and_no_cpu(elsewhere: Components, tiny_folder: Path, home: Path) -> None:
    lora = LoadedLora("0" * 64, 1.0, {"unet": {}})
    profile = PROFILES["turbo"].in_precision("int8")
    routes = routes_of(elsewhere)
    opened = routes.open(profile, (lora,))
    assert opened.denoiser.in_use.precision == "fp16"
    assert opened.said()[0] == "profile turbo: torch int8: takes no LoRAs"
    assert route_ahead(elsewhere, profile, (lora,), lambda line: None) == ("torch", "fp16")
    here = Components.open(str(tiny_folder), "cpu", "auto", None)
    on_torch = profile.model_copy(update={"routes": tuple(r for r in profile.routes if r.backend != "openvino")})
    assert routes_of(here).open(on_torch, ()).denoiser.in_use == InUse("torch", "fp32", False, ("cpu",))
    assert route_ahead(here, on_torch, (), lambda line: None) == ("torch", "fp32")


@pytest.mark.slow  # converts and compiles every part twice
def test_eight_bit_weights_by_name_take_little_memory(tiny_folder: Path, home: Path) -> None:
    """Text encoders and U-Net are closed once their part is done; kernels of convolutions are in no blob."""
    pytest.importorskip("nncf")
    engine = Engine.load(str(tiny_folder), device="cpu")
    request = GenerateRequest(prompt="a cat", seed=3, num_steps=2, profile="balanced", precision="int8-weights")
    in_use = []
    (drawn,) = engine.generate(request, on_step=lambda step: in_use.append(engine.route_of(request)))
    assert [(one.precision, one.is_compiled) for one in in_use] == [("int8-weights", True)] * 2
    assert drawn.record.precision == "int8-weights"
    assert not engine.route_of(request).is_compiled
    assert any("not certified" in line for line in drawn.warnings)
    store = Store(lambda line: None, home / "openvino")
    for what in ("unet", "text-encoder", "text-encoder-2"):
        assert [identity["precision"] for identity in store.identities(what)] == ["int8-weights"]
    (narrow,) = (path.stat().st_size for path in (home / "openvino").glob("blob-unet-full-*/compiled.blob"))
    list(engine.generate(request.model_copy(update={"precision": "fp32"})))
    sizes = {path.stat().st_size for path in (home / "openvino").glob("blob-unet-full-*/compiled.blob")}
    assert narrow < 1.5 * min(sizes - {narrow}), "a graph and scales, no kernels"
    wide = drawn.record.request.model_copy(update={"width": 1024, "height": 1024})
    assert planned_tile_px(engine.components, wide, "full") == TILE_PX
    assert planned_tile_px(engine.components, wide.model_copy(update={"precision": None}), "full") is None


def test_compiled_torch_is_for_engines_that_may_compile(tiny_folder: Path, home: Path) -> None:
    """On a CPU by regions; a profile that OpenVINO serves never comes to it there."""
    components = Components.open(str(tiny_folder), "cpu", "auto", None)
    profile = PROFILES["balanced"]
    compiled = profile.model_copy(update={"routes": profile.routes[1:]})
    assert [str(route) for route in compiled.routes] == ["torch-compiled own", "torch own"]
    opened = routes_of(components).open(compiled, ())
    assert (opened.denoiser.in_use.backend, opened.said()) == ("torch", ())
    may = Routes(components, Adapters(components), nothing_drawn, may_compile=True)
    assert may.open(compiled, ()).denoiser.in_use == InUse("torch-compiled", "fp32", False, ("cpu",))
    assert may.open(PROFILES["exact"], ()).denoiser.in_use.backend == "torch"


@pytest.mark.gpu
def test_a_profile_is_compiled_whole_on_a_gpu_and_serves_any_thread(tiny_folder: Path, home: Path) -> None:
    request = GenerateRequest(prompt="a cat", seed=3, num_steps=6, profile="turbo")
    engine = Engine.load(str(tiny_folder), device="cuda", may_compile=True)
    (expected,) = Engine.load(str(tiny_folder), device="cuda").generate(request)
    with ThreadPoolExecutor(2) as pool:
        for drawn in pool.map(lambda _: engine.generate(request)[0], range(4)):
            assert drawn.record.backend == "torch-compiled"
            apart = numpy.abs(numpy.asarray(drawn.image, int) - numpy.asarray(expected.image, int))
            assert apart.mean() < 2


@pytest.mark.gpu
@pytest.mark.parametrize("may_compile", [False, True])
def test_int8_by_name_on_a_gpu(tiny_folder: Path, home: Path, may_compile: bool) -> None:
    engine = Engine.load(str(tiny_folder), device="cuda", may_compile=may_compile)
    request = GenerateRequest(prompt="a cat", seed=3, num_steps=6, profile="balanced", precision="int8")
    (drawn,) = engine.generate(request)
    backend = "torch-compiled" if may_compile else "torch"
    assert (drawn.record.backend, drawn.record.precision) == (backend, "int8")
    (wide,) = engine.latents(request.model_copy(update={"precision": None}))
    (narrow,) = engine.latents(request)
    assert float(torch.cosine_similarity(wide.flatten().float(), narrow.flatten().float(), dim=0)) > 0.98
