"""How weights move: optimizer, learning-rate schedule and the running average, as data.

The things themselves are built in `training/` (optimizer.py, ema.py).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.base import Spec

UnitInterval = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class StrictSpec(Spec, strict=True):
    """A spec that takes a number only as a number: a recipe's `"100"` is a mistake, not a hundred."""


class AdamWSpec(StrictSpec):
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    `lr` is the peak rate; the schedule multiplies it. `lr_factors` multiplies it for single components, as in
    `{text_encoder = 0.1}`, or for modules in them, with `*` and `[0-9]` as in file names: `{"unet.mid_block" = 3.0,
    "unet.*.transformer_blocks.[2-9]" = 3.0}`. Where several names meet a parameter, the last one counts.
    """

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-4
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    lr_factors: dict[str, PositiveFloat] = {}


class LrScheduleSpec(StrictSpec):
    """The learning rate as a pure function of the optimizer step.

    A linear warm-up over `warmup_steps`, then: `constant` stays at the peak; `linear` and `cosine` fall to
    `final_factor` times the peak at `decay_steps` (the run's `steps` unless given) and stay there.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    final_factor: Fraction = 0.0
    decay_steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        if self.kind == "constant":
            for name in ("final_factor", "decay_steps"):
                if name in self.model_fields_set and getattr(self, name):
                    raise InvalidValue(
                        f"lr_schedule.{name}", getattr(self, name), "nothing with kind constant", "remove it"
                    )
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise InvalidValue("lr_schedule.decay_steps", self.decay_steps, "more than warmup_steps", "raise it")
        return self


class EmaSpec(StrictSpec):
    """The exponential moving average of the trained weights, which is what a run publishes.

    The decay at step n is `min(decay, (1 + n) / (warmup + n))`, so that the first steps are forgotten quickly.
    """

    decay: UnitInterval = 0.999
    warmup: PositiveInt = 10
