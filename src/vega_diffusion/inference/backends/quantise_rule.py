"""How int8 is made, as data: how much is calibrated on, and which layers stay out of it.

The rule is part of a stored network's identity: another rule is another network. The work is in
`openvino_quantise.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vega_diffusion.errors import InvalidValue


@dataclass(frozen=True)
class QuantisationRule:
    """The rule by which layers leave int8.

    Every group of layers that shares quantised inputs is quantised alone and costs a squared relative error of the
    prediction on the probes: of the guided one where a probe has two rows, since guidance multiplies what 8 bits change
    between them, and other layers are the worst then (docs/log.md). Errors of independent roundings add up, so groups
    leave int8, the one with the largest error for its share of the work first, until the rest adds up to at most
    `max_error`, or `max_kept_work` of the work has left.

    Attributes:
        num_samples: Calibration questions, of one row or two, spread over the timesteps by whoever collects them.
        num_probes: Questions on which errors are measured, at equal distances among the samples; 0 quantises
            everything and measures nothing.
        max_error: Relative root mean square error of the prediction that may remain.
        max_kept_work: Share of the work (multiplications) that may stay in higher precision, 0 to 1.
        smooth: SmoothQuant's strength for matrix products, -1 for none.
        guidance: Scale at which the two rows of a probe are one prediction, 1 or more.
        left_out: Layers that stay out whatever they cost, by their names in the network.

    Source: the additive error model: Nagel et al., A White Paper on Neural Network Quantization, arXiv 2106.08295,
    section 3.6 (per-layer analysis); SmoothQuant: Xiao et al., arXiv 2211.10438, equation 4.
    """

    num_samples: int = 32
    num_probes: int = 4
    max_error: float = 0.03
    max_kept_work: float = 0.2
    smooth: float = 0.95
    guidance: float = 5.0
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidValue: One is out of its range.
        """
        for name, good, allowed in (
            ("num_samples", self.num_samples >= 1, "1 or more"),
            ("num_probes", 0 <= self.num_probes <= self.num_samples, "0 to num_samples"),
            ("max_error", self.max_error > 0, "above 0"),
            ("max_kept_work", 0 <= self.max_kept_work <= 1, "0 to 1"),
            ("guidance", self.guidance >= 1, "1 or more"),
            ("smooth", self.smooth == -1 or 0 <= self.smooth <= 1, "0 to 1, or -1"),
        ):
            if not good:
                raise InvalidValue(f"quantisation.{name}", getattr(self, name), allowed, "change it")

    def as_identity(self) -> dict[str, Any]:
        """Return the rule as a mapping; layers left out by name are in it where there are any."""
        return {name: value for name, value in asdict(self).items() if value != ()}


DECODER_RULE = QuantisationRule(num_samples=12, num_probes=2, max_error=0.02, max_kept_work=0.4)
"""How an autoencoder's decoder is made: pictures are forgiving, and nothing multiplies its error (docs/log.md)."""


@dataclass(frozen=True)
class Group:
    """Layers that leave int8 together, because they read the same quantised numbers.

    Attributes:
        layers: Their names in the network.
        work: Multiplications, as a share of all quantised layers'.
        error: Squared relative error of the prediction when they alone are quantised.
    """

    layers: tuple[str, ...]
    work: float
    error: float


def kept_groups(groups: list[Group], rule: QuantisationRule) -> list[Group]:
    """Return the groups that stay in higher precision under the rule, the worst first.

    A group that would exceed `max_kept_work` stays in int8, and the next is tried.
    """
    remaining, kept_work, kept = sum(group.error for group in groups), 0.0, []
    for group in sorted(groups, key=lambda group: (-group.error / max(group.work, 1e-9), group.layers)):
        if remaining <= rule.max_error**2:
            break
        if kept_work + group.work <= rule.max_kept_work:
            kept.append(group)
            kept_work += group.work
            remaining -= group.error
    return kept
