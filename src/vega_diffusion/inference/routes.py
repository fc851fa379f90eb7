"""From a profile to what serves it, U-Net and parts beside: the first of its routes that this machine and model have.

What backends do, and what they do when something fails, is theirs (`backends/`); a route that cannot be taken is named
in one line and the next one tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import RLock

import torch

from vega_diffusion.inference.adapters import Adapters, LoadedLora
from vega_diffusion.inference.backends.calibration import Drawn, as_samples, decoder_samples
from vega_diffusion.inference.backends.faults import BackendFault, Say
from vega_diffusion.inference.backends.faults import Route as BackendRoute
from vega_diffusion.inference.backends.open import (
    CALIBRATED,
    Opening,
    PartName,
    Weights,
    is_calibrated,
    open_denoiser,
    open_networks,
    precision_beside,
)
from vega_diffusion.inference.backends.protocol import Backend, Denoiser, Precision
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.inference.backends.torch_compiled import TorchCompiled
from vega_diffusion.inference.backends.torch_eager import PRECISIONS, TorchEager
from vega_diffusion.inference.backends.torch_int8 import DEVICES as INT8_DEVICES
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.lines import NOT_CALIBRATED
from vega_diffusion.inference.openvino_parts import OpenVinoParts
from vega_diffusion.inference.rules import openvino_streams
from vega_diffusion.models.checkpoint import load_autoencoder, load_unet
from vega_diffusion.specs.profile import ProfileSpec, Route

Draw = Callable[[int], Drawn]
"""How many -> so many questions of real denoising runs, and the latents that they ended with."""


@dataclass(frozen=True)
class Opened:
    """A U-Net that is ready.

    Attributes:
        denoiser: The U-Net.
        parts: Text encoders and decoders of the same backend, where it has them; else those of torch serve.
    """

    denoiser: Denoiser
    parts: OpenVinoParts | None
    _profile: str
    _passed: list[str]
    _lines: list[str]

    def said(self) -> tuple[str, ...]:
        """Return lines that the user should see and that nobody has asked for yet: routes passed over, backends."""
        lines = [f"profile {self._profile}: {line}" for line in (*self._passed, *self._lines)]
        self._passed.clear()
        self._lines.clear()
        return tuple(lines)


def route_ahead(
    components: Components, profile: ProfileSpec, loras: tuple[LoadedLora, ...], say: Say
) -> tuple[Backend, Precision]:
    """Return backend and precision of what would run a profile's U-Net; nothing is opened or converted.

    Args:
        components: The model.
        profile: Names the routes.
        loras: Those of the request.
        say: Gets a line about int8 that was made and can no longer be used.
    """
    is_own = not any("unet" in lora.weights for lora in loras)
    here = components.device.type == "cpu" and find_spec("openvino") is not None and is_own
    for route in profile.routes:
        if route.precision == "own":
            break
        if route.backend != "openvino":
            if route.backend == "torch" and components.device.type in INT8_DEVICES and is_own:
                return route.backend, route.precision
            continue
        told = Opening(say=partial(_say_of, say, route))
        if not here or (route.precision == "int8" and not is_calibrated(components.digest, told)):
            continue
        return route.backend, route.precision if "int8" in route.precision else precision_beside(route.precision)
    return "torch", PRECISIONS[components.dtype]


def _say_of(say: Say, route: Route, line: str) -> None:
    say(f"{route}: {line}")


@dataclass
class _Kept:
    """A U-Net that was opened, or why it cannot be."""

    denoiser: Denoiser | None
    reason: str | None = None  # None: a route that is there for those who made it
    lines: list[str] = field(default_factory=list)
    parts: OpenVinoParts | None = None


def _passed(route: Route, reason: str) -> _Kept:
    """Return why a route cannot be taken, which int8 that nobody asked for does not tell."""
    is_asked = route.precision != "int8" or route.is_small or route.backend == "torch"
    return _Kept(None, reason if is_asked else None)


class Routes:
    """The U-Nets of one loaded model, by route; safe to call from several threads.

    Args:
        components: The model.
        adapters: Its LoRAs, which act in torch alone.
        draw: Called once where a network must be calibrated.
        rule: How int8 is made.
        may_compile: Whether U-Nets are compiled by torch where OpenVINO does not run them.

    Attributes:
        num_threads: Of OpenVINO; None takes as many as torch does. To be set before anything is opened.
    """

    def __init__(
        self,
        components: Components,
        adapters: Adapters,
        draw: Draw,
        rule: QuantisationRule | None = None,
        may_compile: bool = False,
    ) -> None:
        self.num_threads: int | None = None
        self._components, self._adapters, self._draw = components, adapters, draw
        self._rule, self._may_compile = rule or QuantisationRule(), may_compile
        self._open: dict[Route, _Kept] = {}
        self._lock = RLock()  # calibration draws pictures through us
        self._has_int8 = components.device.type in INT8_DEVICES  # in torch

    def open(self, profile: ProfileSpec, loras: tuple[LoadedLora, ...]) -> Opened:
        """Return the U-Net of the first route of a profile that can be taken.

        Args:
            profile: Names the routes; the last one is torch, which is always there.
            loras: Those of the request.
        """
        passed = []
        for route in profile.routes:
            kept = self._kept(route, loras)
            if kept.denoiser is not None:
                return Opened(kept.denoiser, kept.parts, profile.name, passed, kept.lines)
            if kept.reason is not None:
                passed.append(f"{route}: {kept.reason}")
        raise AssertionError("the last route of every profile is torch")

    def calibrate(self, say: Say) -> dict[PartName, Path]:
        """Make the int8 U-Net and decoder that profiles then take, where they are not kept; return their folders.

        Args:
            say: Gets every line that a user should see.

        Raises:
            BackendFault: OpenVINO or NNCF is not installed.
        """
        parts, opening = self._components, replace(self._opening(say), may_fall_back=False)
        drawn = cache(partial(self._draw, self._rule.num_samples))
        samples = {
            "unet": lambda: as_samples(drawn().questions),
            "vae-decoder": lambda: decoder_samples(drawn().latents),
        }
        weights = {
            "unet": Weights(parts.digest, self._wide_unet),
            "vae-decoder": Weights(
                parts.digest, lambda: load_autoencoder(parts.folder, parts.spec.autoencoder, torch.float32)
            ),
        }
        with self._lock:
            self._open = {route: kept for route, kept in self._open.items() if route.precision != "int8"}
            return {
                what: open_networks(what, "int8", weights[what], opening, samples=samples[what]).folder
                for what in CALIBRATED
            }

    def _opening(self, say: Say) -> Opening:
        threads = self.num_threads or torch.get_num_threads()
        streams = openvino_streams(self._components.unet_parameters, threads)
        return Opening(say=say, num_threads=threads, num_streams=streams, rule=self._rule)

    def _kept(self, route: Route, loras: tuple[LoadedLora, ...]) -> _Kept:
        if route.backend == "torch-compiled" and not self._may_compile:
            return _Kept(None)
        if route.backend == "openvino" and self._components.device.type != "cpu":
            is_next = route.precision == "int8" and self._has_int8  # int8 in torch follows
            return _Kept(None) if is_next else _passed(route, "runs on CPUs alone")
        if route.backend != "openvino" and route.precision == "int8" and not self._has_int8:
            return _Kept(None)
        if (route.backend, route.precision) != ("torch", "own") and any("unet" in lora.weights for lora in loras):
            return _passed(route, "takes no LoRAs")
        with self._lock:
            if route not in self._open:
                self._open[route] = self._opened(route)
            return self._open[route]

    def _opened(self, route: Route) -> _Kept:
        provider = self._components.unet_in_8_bits if route.precision == "int8" else self._adapters.unet
        if route.backend == "torch":
            return _Kept(TorchEager(provider))
        if route.backend == "torch-compiled" and self._components.device.type == "cuda":
            return _Kept(TorchCompiled(provider, channels_last=True, cuda_graphs=True))
        parts = self._components
        precision = PRECISIONS[parts.dtype] if route.precision == "own" else route.precision
        lines: list[str] = []
        opening = self._opening(lines.append)
        if route.is_small:
            opening = replace(opening, max_rows=1)
        is_torch = route.backend == "torch-compiled"
        if not is_torch and precision == "int8" and not is_calibrated(parts.digest, opening):
            return _Kept(None, "; ".join(lines)) if lines else _passed(route, NOT_CALIBRATED)
        weights = Weights(parts.digest, provider if is_torch else self._wide_unet)
        try:
            denoiser = open_denoiser(
                BackendRoute(route.backend, precision), weights, opening, wide_from=route.wide_from
            )
        except BackendFault as fault:
            return _Kept(None, fault.fault.value)
        beside = None if is_torch else OpenVinoParts(parts, denoiser.in_use.precision, opening, route.is_small)
        return _Kept(denoiser, None, lines, beside)

    def _wide_unet(self) -> torch.nn.Module:
        """Return a U-Net of its own in float32, which conversion starts from."""
        parts = self._components
        return load_unet(parts.folder, parts.spec.unet, torch.float32).eval().requires_grad_(False)
