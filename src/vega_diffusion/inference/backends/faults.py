"""What can go wrong with a backend, and what is done then: one table, followed by everything in this package.

A fault ends in a stated way out, told in exactly one line, or in one error; nothing falls back without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from vega_diffusion.errors import Unavailable, VegaError
from vega_diffusion.inference.backends.protocol import Backend, Precision

Say = Callable[[str], None]


@dataclass(frozen=True, order=True)
class Route:
    """A backend and the precision of its numbers."""

    backend: Backend
    precision: Precision

    def __str__(self) -> str:
        return f"{self.backend} in {self.precision}"


class Fault(StrEnum):
    """Kinds of trouble, each with its row in `WAYS_OUT`."""

    NOT_INSTALLED = "the backend's packages are not installed"
    NO_QUANTISER = "nncf is not installed"
    NO_SAMPLES = "there are no calibration questions"
    NO_BF16 = "this CPU has no bf16 instructions"
    NO_VNNI = "this CPU has no VNNI instructions"
    OTHER_IDENTITY = "what is kept was made from other weights or by other versions"
    DAMAGED_CACHE = "a kept file is damaged"
    NO_WEIGHTS = "nothing is kept for these weights and no weights were given"
    NOT_FINITE = "values that are not finite"


@dataclass(frozen=True)
class WayOut:
    """What follows a fault.

    Attributes:
        instead: The precisions of the same backend to try next, in order; with none left, the fault is an error.
        goes_on: Whether work simply goes on, after `line`.
        line: What the user is told.
    """

    instead: tuple[Precision, ...] = ()
    goes_on: bool = False
    line: str = ""


WAYS_OUT: dict[Fault, WayOut] = {
    Fault.NOT_INSTALLED: WayOut(),  # an error here; `open_denoiser` then goes to its next route, where it has one
    Fault.NO_QUANTISER: WayOut(("bf16", "fp32")),
    Fault.NO_SAMPLES: WayOut(("bf16", "fp32")),
    Fault.NO_BF16: WayOut(("fp32",)),
    Fault.NO_VNNI: WayOut(goes_on=True, line="int8 gains little speed here, and its weights have 7 bits"),
    Fault.OTHER_IDENTITY: WayOut(goes_on=True, line="it is made anew"),
    Fault.DAMAGED_CACHE: WayOut(goes_on=True, line="it is made anew"),
    Fault.NO_WEIGHTS: WayOut(),
    Fault.NOT_FINITE: WayOut(("bf16", "fp32")),
}


class BackendFault(Unavailable):
    """A route that does not work here; its line names field, value, what is allowed and the remedy."""

    def __init__(self, fault: Fault, route: Route, remedy: str) -> None:
        super().__init__(f"backend: {route} is not possible ({fault.value}); {remedy}")
        self.fault, self.route = fault, route


class NotFinite(VegaError):
    """A network gave values that are not finite from finite ones, in the widest numbers there are."""


def next_route(fault: BackendFault) -> Route | None:
    """Return the route of the same backend to try after a fault, or None."""
    order = WAYS_OUT[fault.fault].instead
    at = order.index(fault.route.precision) + 1 if fault.route.precision in order else 0
    return Route(fault.route.backend, order[at]) if at < len(order) else None
