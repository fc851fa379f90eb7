"""Profiles: how a picture is drawn, from exactly to fast, as declared bundles; and the plan of steps that follows.

What does not live here: backends and decoders themselves (`inference/`), and how good and fast a profile is for given
weights (`benchmarks/certify.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.base import Spec

ProfileName = Literal["exact", "balanced", "turbo", "realtime"]
Decoder = Literal["full", "tiny"]
Backend = Literal["torch", "torch-compiled", "openvino"]
# fp16 is for accelerators; int8 quantises weights and activations, int8-weights the weights alone, on OpenVINO.
Precision = Literal["fp32", "bf16", "fp16", "int8", "int8-weights"]
OpenVinoPrecision = Literal["fp32", "bf16", "int8", "int8-weights"]


class Route(Spec):
    """Where a U-Net runs.

    OpenVINO's int8 is taken only where `vega calibrate` has made its networks, torch's on GPUs alone, and compiled
    torch only where the engine was told to compile: that takes minutes to hours, for which no picture should wait.

    Args:
        backend: Which library evaluates it.
        precision: In which numbers; `own` is the dtype that the engine was loaded with.
        wide_from: Timestep, 0 to 1000, from which on up, the noisiest steps, the U-Net runs in bf16 or fp32 though
            `precision` is int8: those steps decide what the picture shows, and drift most (docs/log.md). None: never.
        is_small: Whether memory counts for more than time: text encoders hold 8-bit weights, networks are closed once
            their part is done, rows are evaluated one by one, and tiles begin at smaller pictures.
    """

    backend: Backend
    precision: Precision | Literal["own"]
    wide_from: NonNegativeInt | None = None
    is_small: bool = False

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.wide_from is not None and (self.precision != "int8" or self.wide_from > 1000):
            allowed = "a timestep, 0 to 1000, beside int8"
            raise InvalidValue("wide_from", self.wide_from, allowed, "leave it out for other precisions")
        return self

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


TORCH = Route(backend="torch", precision="own")
_COMPILED = Route(backend="torch-compiled", precision="own")
# In no profile by itself, since it was never timed (docs/log.md).
_INT8_ON_GPUS = (Route(backend="torch-compiled", precision="int8"), Route(backend="torch", precision="int8"))


REUSE_FROM = 0.2
"""Share of the steps before which no deep layers are reused."""


def check_interval(field: str, interval: tuple[float, float]) -> None:
    """Check that an interval of shares of the steps is one.

    Raises:
        InvalidValue: It is empty, or reaches beyond 0 to 1.
    """
    if not 0 <= interval[0] < interval[1] <= 1:
        allowed = "two shares of the steps, 0 <= first < second <= 1"
        raise InvalidValue(field, interval, allowed, "(0, 1) guides every step")


class ProfileSpec(Spec):
    """One way of drawing; what a request says itself goes before it.

    Args:
        name: Its name in commands, Python, HTTP and records.
        routes: Where the U-Net runs: the first that this machine has.
        decoder: The full autoencoder, or the tiny one where the model has one.
        guidance_interval: Share of the steps at which guidance begins, and at which it ends: outside, the U-Net is
            asked about the prompt alone.
        guidance_kept: Share of what guidance last changed of a prediction that is added after the interval, 0 to 1.
        reuse: The deep layers are computed every so many steps and kept in between, after the first fifth of the steps;
            1 computes them always.
        guidance_scale: None leaves it to the model.
        sampler: None leaves it to the model.
        num_steps: None leaves it to the model.

    Source: guidance in an interval: Kynkaanniemi et al. 2024 (arXiv 2404.07724); an unconditional branch told from an
    earlier one: Lv et al. 2024, FasterCache (arXiv 2410.19355), here the difference itself, shrunk; reuse: Ma et al.
    2023, DeepCache, section 3.3 (arXiv 2312.00858).
    """

    name: ProfileName
    routes: tuple[Route, ...] = (TORCH,)
    decoder: Decoder = "full"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_kept: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    reuse: PositiveInt = 1
    guidance_scale: float | None = None
    sampler: str | None = None
    num_steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _usable(self) -> Self:
        check_interval("guidance_interval", self.guidance_interval)
        return self

    @property
    def is_small(self) -> bool:
        """Whether memory counts for more than time."""
        return self.routes[0].is_small

    def in_precision(self, precision: OpenVinoPrecision | None) -> Self:
        """Return this profile with networks in these numbers where that is possible, at every step.

        Args:
            precision: None leaves it to the profile. In 8 bits what follows takes little memory, too, on OpenVINO;
                GPUs have `int8` in torch.
        """
        if precision is None:
            return self
        first = Route(backend="openvino", precision=precision, is_small=precision in ("int8", "int8-weights"))
        on_gpus = _INT8_ON_GPUS if precision == "int8" else ()
        others = (one for one in self.routes if one.precision != "int8")
        return self.model_copy(update={"routes": (first, *on_gpus, *others)})

    def definition(self, backend: str, precision: str) -> str:
        """Return what decides a picture on a route of this profile, in words: certificates hold for it alone."""
        first, last = self.guidance_interval
        words = [f"guidance from {first:g} to {last:g} of the steps"]
        if self.guidance_kept > 0:
            words.append(f"{self.guidance_kept:g} of it kept after them")
        if self.reuse > 1:
            words.append(f"deep layers every {self.reuse} steps from {REUSE_FROM:g} on")
        for name, value in (("scale", self.guidance_scale), ("sampler", self.sampler), ("steps", self.num_steps)):
            if value is not None:
                words.append(f"{name} {value}")
        wide = [route.wide_from for route in self.routes if (route.backend, route.precision) == (backend, precision)]
        if wide and wide[0] is not None:
            words.append(f"wide numbers from timestep {wide[0]} up")
        if (backend, precision) == ("openvino", "int8") and self.decoder == "full":
            words.append("decoder in 8 bits")
        return "; ".join(words)


# Where the CPU has no bf16 instructions the backend goes on in fp32 by itself (`inference/backends/faults.py`).
_FAST = Route(backend="openvino", precision="bf16")
# Of 0, 0.5, 0.7 and 1 the one whose latents are nearest to those of `exact` on vega-mini (docs/log.md).
_KEPT = 0.7
# Not in `balanced`: 350 pictures do not show that it costs vega-mini less than the 2 points which `balanced` may cost
# (docs/log.md).
_FASTEST = Route(backend="openvino", precision="int8", wide_from=600)

PROFILES: dict[str, ProfileSpec] = {
    one.name: one
    for one in (
        ProfileSpec(name="exact"),
        ProfileSpec(
            name="balanced", routes=(_FAST, _COMPILED, TORCH), guidance_interval=(0.0, 0.8), guidance_kept=_KEPT
        ),
        ProfileSpec(
            name="turbo",
            routes=(_FASTEST, _FAST, _COMPILED, TORCH),
            guidance_interval=(0.0, 0.8),
            guidance_kept=_KEPT,
            reuse=2,
        ),
        ProfileSpec(
            name="realtime",
            routes=(_FASTEST, _FAST, _COMPILED, TORCH),
            decoder="tiny",
            guidance_scale=1.0,
            sampler="lcm",
            num_steps=4,
        ),
    )
}


@dataclass(frozen=True)
class StepPlan:
    """What every step of a picture asks of the U-Net.

    Args:
        guided: Whether the step also asks about the negative prompt.
        deep: Whether it computes the deep layers, or takes those of a step before.
    """

    guided: tuple[bool, ...]
    deep: tuple[bool, ...]

    @classmethod
    def of(cls, num_steps: int, interval: tuple[float, float], reuse: int, guidance: bool) -> Self:
        """Return the plan of a run.

        The first steps compute their deep layers always: they decide what the picture shows, and drift most
        (docs/log.md). So does a step that is guided where the one before was not: those of the negative prompt are not
        there yet.

        Args:
            num_steps: U-Net evaluations of the sampler.
            interval: Shares of them between which guidance acts.
            reuse: Deep layers are computed every so many steps, after `REUSE_FROM`.
            guidance: Whether there is guidance at all.
        """
        guided = tuple(guidance and interval[0] <= step / num_steps < interval[1] for step in range(num_steps))
        begins = [now and not before for now, before in zip(guided, (True, *guided), strict=False)]
        first = REUSE_FROM * num_steps
        return cls(guided, tuple(step < first or step % reuse == 0 or begins[step] for step in range(num_steps)))

    @property
    def reuses(self) -> bool:
        """Whether some step takes the deep layers of another."""
        return not all(self.deep)

    def rows(self) -> int:
        """Return how many rows go through the U-Net in all, for one picture."""
        return sum(1 + guided for guided in self.guided)

    def cost(self, shallow_share: float) -> float:
        """Return the work in deep rows, as one unguided step of all layers counts 1.

        Args:
            shallow_share: What a step without deep layers costs of one with them.
        """
        pairs = zip(self.guided, self.deep, strict=True)
        return sum((1 + guided) * (1.0 if deep else shallow_share) for guided, deep in pairs)
