"""Conversions of the smallest U-Net, made once a session."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tiny_backends import TINY_RULE, smallest_unet
from tiny_questions import random_question
from vega_diffusion.inference.backends.faults import Route
from vega_diffusion.inference.backends.open import Opening, Weights, open_denoiser
from vega_diffusion.inference.backends.protocol import Precision


def _convert(home: Path, precision: Precision) -> tuple[Path, Any]:
    unet = smallest_unet()
    questions = [random_question(unet, 1, seed=seed, length=77) for seed in range(4)]
    opening = Opening(home=home, rule=TINY_RULE, keep_blobs=False)
    weights = Weights("smallest", lambda: unet)
    open_denoiser(Route("openvino", precision), weights, opening, questions=lambda: questions).close()
    return home, unet


@dataclass
class Conversion:
    """What the first conversion did beside making files.

    Attributes:
        home: Where they are.
        lines: What was said.
        is_freed: Whether the torch U-Net was gone afterwards.
        sent: Usage data that the tools wanted to send.
    """

    home: Path
    lines: list[str] = field(default_factory=list)
    is_freed: bool = False
    sent: list[Any] = field(default_factory=list)


@pytest.fixture(scope="session")
def first_conversion(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """Convert the smallest U-Net to float32, holding it nowhere else."""
    pytest.importorskip("openvino")
    from openvino_telemetry.backend.backend_ga4 import GA4Backend

    done, held = Conversion(tmp_path_factory.mktemp("openvino")), [smallest_unet()]
    gone = weakref.ref(held[0])
    opening = Opening(home=done.home, say=done.lines.append, keep_blobs=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GA4Backend, "send", lambda self, message: done.sent.append(message))
        weights = Weights("smallest", lambda: held[0], held.clear)
        open_denoiser(Route("openvino", "fp32"), weights, opening).close()
    gc.collect()
    done.is_freed = gone() is None
    return done


@pytest.fixture(scope="session")
def converted(first_conversion: Conversion) -> tuple[Path, Any]:
    """A home that holds the smallest U-Net in float32 under the digest "smallest", and that U-Net."""
    pytest.importorskip("openvino")
    return first_conversion.home, smallest_unet()


@pytest.fixture(scope="session")
def quantised(converted: tuple[Path, Any]) -> tuple[Path, Any]:
    """The same home, with the same U-Net in int8, too."""
    pytest.importorskip("nncf")
    return _convert(converted[0], "int8")


@pytest.fixture(scope="session")
def compressed(converted: tuple[Path, Any]) -> tuple[Path, Any]:
    """The same home, with the same U-Net in int8-weights, too."""
    pytest.importorskip("nncf")
    return _convert(converted[0], "int8-weights")
