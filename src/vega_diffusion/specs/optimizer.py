"""How weights move: optimizer, learning-rate schedule and the running average, as data.

The things themselves are built in `training/` (optimizer.py, ema.py).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Field,
    NegativeFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.base import Spec, as_vega_error

UnitInterval = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

POLYNOMIAL_END = 1e-7
"""The rate, not a factor, at which the polynomial schedule of diffusers ends; its scripts cannot change it."""


class StrictSpec(Spec, strict=True):
    """A spec that takes a number only as a number: a recipe's `"100"` is a mistake, not a hundred."""


class QuietSpec(StrictSpec):
    """A spec whose later settings (`unsaid`) are written only where they say something.

    So the identity of a recipe that was saved before they existed stays what it was.
    """

    unsaid: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        silent = {name for name in self.unsaid if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in data.items() if name not in silent}


class AdamWSpec(QuietSpec):
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    `lr` is the peak rate; the schedule multiplies it. `lr_factors` multiplies it for single components, as in
    `{text_encoder = 0.1}`, or for modules in them, with `*` and `[0-9]` as in file names: `{"unet.mid_block" = 3.0,
    "unet.*.transformer_blocks.[2-9]" = 3.0}`. Where several names meet a parameter, the last one counts.
    `weight_decays` replaces `weight_decay` for components and modules that are named in the same way. With
    `stochastic_rounding`, for bf16 weights, a step is computed in fp32 and rounded up or down by chance, so that what
    is smaller than a bf16 step adds up.
    """

    unsaid = ("weight_decays", "stochastic_rounding")
    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-4
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    lr_factors: dict[str, PositiveFloat] = {}
    weight_decays: dict[str, NonNegativeFloat] = {}
    stochastic_rounding: bool = False


class AdamW8bitSpec(StrictSpec):
    """AdamW with moments in 8 bits, block by block (Dettmers et al. 2022, arXiv 2110.02861), by bitsandbytes.

    Tensors of fewer than 4,096 values keep theirs in fp32. The settings are those of `adamw`.
    """

    kind: Literal["adamw_8bit"]
    lr: PositiveFloat = 1e-4
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    lr_factors: dict[str, PositiveFloat] = {}
    weight_decays: dict[str, NonNegativeFloat] = {}
    stochastic_rounding: bool = False


class AdafactorSpec(StrictSpec):
    """Adafactor: second moments by row and column alone (Shazeer and Stern 2018, arXiv 1804.04235), by transformers.

    The rate is `lr` and the schedule, as everywhere here, never one that it finds by itself (`relative_step`);
    `scale_parameter` multiplies it by the size of each tensor, at least 1e-3. `decay_rate` makes the decay of second
    moments 1 - step ** decay_rate, `clip_threshold` bounds the root mean square of a tensor's update, and `beta1` adds
    a first moment, which costs what it saves elsewhere.
    """

    kind: Literal["adafactor"]
    lr: PositiveFloat = 1e-4
    eps: PositiveFloat = 1e-30
    clip_threshold: PositiveFloat = 1.0
    decay_rate: NegativeFloat = -0.8
    beta1: UnitInterval | None = None
    weight_decay: NonNegativeFloat = 0.0
    scale_parameter: bool = False
    lr_factors: dict[str, PositiveFloat] = {}
    weight_decays: dict[str, NonNegativeFloat] = {}
    stochastic_rounding: bool = False


class ProdigySpec(StrictSpec):
    """Prodigy: Adam that estimates its own rate (Mishchenko and Defazio 2024, arXiv 2306.06101), by prodigyopt.

    `lr` and the schedule multiply its estimate and should begin at 1; there is one estimate for all parameters, hence
    no `lr_factors`. The estimate starts at `d0` and is scaled by `d_coef`; `beta3` is the decay of its averages, the
    root of the second beta where it is not given. `decouple` decays weights as AdamW does, not as a part of the
    gradient. `safeguard_warmup` keeps the rate out of the estimate's denominator, which a warm-up needs.
    """

    lr_factors: ClassVar[dict[str, float]] = {}  # one estimate, one rate
    kind: Literal["prodigy"]
    lr: PositiveFloat = 1.0
    betas: tuple[UnitInterval, UnitInterval] = (0.9, 0.999)
    beta3: UnitInterval | None = None
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    decouple: bool = True
    use_bias_correction: bool = True
    safeguard_warmup: bool = True
    d0: PositiveFloat = 1e-6
    d_coef: PositiveFloat = 1.0
    weight_decays: dict[str, NonNegativeFloat] = {}
    stochastic_rounding: bool = False

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        if not self.decouple and not self.weight_decay and not any(self.weight_decays.values()):
            raise InvalidValue("optimizer.decouple", False, "true where no weight decays", "remove it")
        return self


_OptimizerKind = AdamWSpec | AdamW8bitSpec | AdafactorSpec | ProdigySpec
_SPECS: dict[str, type[StrictSpec]] = {
    get_args(one.model_fields["kind"].annotation)[0]: one for one in get_args(_OptimizerKind)
}
OPTIMIZER_KINDS = tuple(_SPECS)


def _of_its_kind(data: Any) -> Any:
    """Turn plain data into the spec of its kind, `adamw` where it names none.

    pydantic's own tagged union cannot do without the tag, and puts it into the names of keys in messages.
    """
    if isinstance(data, get_args(_OptimizerKind)):
        return data
    if not isinstance(data, dict):
        raise InvalidValue("optimizer", data, "a table such as { kind = 'adamw', lr = 1e-4 }", "change it")
    kind = data.get("kind", "adamw")
    if kind not in _SPECS:
        raise InvalidValue("optimizer.kind", kind, f"one of: {', '.join(_SPECS)}", "change it")
    try:
        return _SPECS[kind].model_validate_json(json.dumps(data))
    except ValidationError as error:
        mistake = as_vega_error(error)
        if isinstance(mistake, InvalidValue):
            raise InvalidValue(f"optimizer.{mistake.field}", mistake.value, mistake.allowed, mistake.remedy) from error
        raise VegaError(f"optimizer.{mistake}") from error


OptimizerSpec = Annotated[_OptimizerKind, BeforeValidator(_of_its_kind)]


class LrScheduleSpec(QuietSpec):
    """The learning rate as a pure function of the optimizer step.

    A linear warm-up over `warmup_steps`, then: `constant` stays at the peak; the others fall to `final_factor` times
    the peak at `decay_steps` (the run's `steps` unless given) and stay there. `cosine_with_restarts` falls `num_cycles`
    times, each time from the peak; `polynomial` falls as the remaining share of the steps to the power `power`.
    """

    unsaid = ("num_cycles", "power")
    kind: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = "constant"
    warmup_steps: NonNegativeInt = 0
    final_factor: Fraction = 0.0
    decay_steps: PositiveInt | None = None
    num_cycles: PositiveInt = 1
    power: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        falling = ("linear", "cosine", "cosine_with_restarts", "polynomial")
        for name, kinds in (
            ("final_factor", falling),
            ("decay_steps", falling),
            ("num_cycles", ("cosine_with_restarts",)),
            ("power", ("polynomial",)),
        ):
            value = getattr(self, name)
            if self.kind not in kinds and value != type(self).model_fields[name].default:
                raise InvalidValue(f"lr_schedule.{name}", value, f"nothing with kind {self.kind}", "remove it")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise InvalidValue("lr_schedule.decay_steps", self.decay_steps, "more than warmup_steps", "raise it")
        return self


def lr_schedule_of_diffusers(
    name: str, lr: float, warmup_steps: int = 0, num_cycles: int = 1, power: float = 1.0
) -> LrScheduleSpec:
    """Return the schedule that a script of diffusers follows when it is called with these flags.

    Where a rate of diffusers is that of the steps done before, and so 0 at the first step of a warm-up, ours is that of
    the step itself: during a warm-up ours is one step ahead, afterwards they are equal.

    Args:
        name: `--lr_scheduler`.
        lr: `--learning_rate`; `polynomial` ends at 1e-7, a share of it.
        warmup_steps: `--lr_warmup_steps`; `constant` ignores it, as diffusers does.
        num_cycles: `--lr_num_cycles`.
        power: `--lr_power`.

    Raises:
        InvalidValue: There is no such schedule here, or a flag would have no effect on it.
    """
    names = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
    if name == "piecewise_constant":
        remedy = "its rules have no flag in these scripts; choose another, or train the pieces one after the other"
        raise InvalidValue("--lr_scheduler", name, f"one of: {', '.join(names)}", remedy)
    if name not in names:
        raise InvalidValue("--lr_scheduler", name, f"one of: {', '.join(names)}", "choose another")
    for flag, value, only in (("num_cycles", num_cycles, "cosine_with_restarts"), ("power", power, "polynomial")):
        if value != 1 and name != only:
            raise InvalidValue(f"--lr_{flag}", value, f"1 but for --lr_scheduler {only}", "remove it")
    if name == "polynomial" and lr <= POLYNOMIAL_END:
        raise InvalidValue("--learning_rate", lr, f"more than {POLYNOMIAL_END}, where polynomial ends", "raise it")
    data: dict[str, Any] = {"kind": name.removesuffix("_with_warmup")}
    if name != "constant":
        data["warmup_steps"] = warmup_steps
    if name == "cosine_with_restarts":
        data["num_cycles"] = num_cycles
    if name == "polynomial":
        data |= {"power": power, "final_factor": POLYNOMIAL_END / lr}
    return LrScheduleSpec.from_dict(data)


class EmaSpec(StrictSpec):
    """The exponential moving average of the trained weights, which is what a run publishes.

    The decay at step n is `min(decay, (1 + n) / (warmup + n))`, so that the first steps are forgotten quickly.
    """

    decay: UnitInterval = 0.999
    warmup: PositiveInt = 10
