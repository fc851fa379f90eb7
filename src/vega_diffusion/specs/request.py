"""One request for pictures, complete: CLI flags = Python arguments = what a PNG's metadata holds.

Defaults do not live here: a field left None takes the model's own default (`GenerationDefaults` of its spec) when the
engine calls `GenerateRequest.resolved`. What the samplers' names mean is in `inference/samplers.py`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import GenerationDefaults
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.lora import WeightedLora
from vega_diffusion.specs.profile import (
    PROFILES,
    Decoder,
    OpenVinoPrecision,
    ProfileName,
    ProfileSpec,
    check_interval,
)

SAMPLERS: tuple[str, ...] = (
    "euler",
    "euler_a",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2m_sde_karras",
    "unipc",
    "heun",
    "lcm",
)

MAX_PROMPT_CHARACTERS = 10_000
MAX_STEPS = 1000
MAX_IMAGES = 1000
MIN_SIZE_PX, MAX_SIZE_PX, SIZE_MULTIPLE_PX = 32, 4096, 8
MAX_SEED = 2**63 - 1
_RANDOM_SEEDS = 2**32

_Value = TypeVar("_Value")
# What every profile says, and what some leave to the model.
_OF_PROFILES = ("guidance_interval", "guidance_kept", "reuse", "decoder")
_OF_SOME_PROFILES = ("guidance_scale", "sampler", "num_steps")


class GenerateRequest(Spec):
    """What to draw; None means the model's own default.

    Attributes:
        prompt: The text; 1 to 10,000 characters.
        negative_prompt: What guidance moves away from. None: the model's default; "" : the encoded empty text.
        default_negative: Whether a missing negative prompt takes the model's default; resolved requests hold False,
            so that they say all even where there is none.
        guidance_scale: Classifier-free guidance weight w of `uncond + w (cond - uncond)`; 1 or less is off.
        num_steps: Sampler steps, 1 to 1000. With an initial picture, `int(num_steps * strength)` of them run.
        sampler: One of `SAMPLERS`.
        seed: Seed of the first image; image i uses seed + i. None: a random one, recorded in the result.
        num_images: How many pictures; each has a generator of its own, so it does not depend on the others.
        width: Pixels, a multiple of 8. None: the initial picture's, else the model's.
        height: Pixels, a multiple of 8.
        prompt_syntax: `plain` reads the prompt literally; `weighted` reads A1111 syntax: (x), (x:1.3), [x], BREAK.
        init_image: Path of a picture to start from (img2img).
        strength: How much of the initial picture is redrawn, above 0, at most 1. Default 0.8 (1 with a mask).
        mask: Path of a picture, white where to redraw (inpainting); needs `init_image`.
        original_size: (height, width) in pixels that SDXL's size conditioning names. None: the picture's size.
        crop_top_left: (top, left) in pixels that SDXL's crop conditioning names. None: (0, 0).
        loras: LoRA files that act on the model for these pictures, each as "FILE" or "FILE@WEIGHT"; weight 1 unless
            given. Several add up; with none, or weights of 0, the model is as it was, bit for bit.
        profile: How to draw, one of `specs/profile.py`; what is said below and above goes before it. None: `exact`.
        guidance_interval: Shares of the steps between which guidance acts, as (0, 0.8).
        guidance_kept: Share, 0 to 1, of what guidance last changed of a prediction that is added after the interval: no
            second row is asked about, and the picture stays nearer to that of guidance at every step.
        reuse: Deep layers of the U-Net are computed every so many steps and kept in between.
        decoder: `full`, or the model's `tiny` autoencoder.
        precision: In which numbers a profile's networks run on OpenVINO, at every step. None: as the profile says.
            `int8` (after `vega calibrate`) and `int8-weights` take least memory; on a GPU `int8` is of the U-Net alone.
    """

    prompt: str
    negative_prompt: str | None = None
    default_negative: bool = True
    guidance_scale: float | None = None
    num_steps: int | None = None
    sampler: str | None = None
    seed: int | None = None
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    prompt_syntax: Literal["plain", "weighted"] = "plain"
    init_image: str | None = None
    strength: float | None = None
    mask: str | None = None
    original_size: tuple[int, int] | None = None
    crop_top_left: tuple[int, int] | None = None
    loras: tuple[str, ...] = ()
    profile: ProfileName | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_kept: float | None = None
    reuse: int | None = None
    decoder: Decoder | None = None
    precision: OpenVinoPrecision | None = None

    @model_validator(mode="after")
    def _texts_are_usable(self) -> Self:
        if not self.prompt.strip():
            raise InvalidValue("prompt", self.prompt, "some text", "say what to draw")
        for field in ("prompt", "negative_prompt"):
            text = getattr(self, field)
            if text is not None and len(text) > MAX_PROMPT_CHARACTERS:
                raise InvalidValue(field, text, f"at most {MAX_PROMPT_CHARACTERS} characters", "shorten it")
        for text in self.loras:
            WeightedLora.parse(text)
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise InvalidValue("sampler", self.sampler, f"one of: {', '.join(SAMPLERS)}", "choose one of them")
        return self

    @model_validator(mode="after")
    def _numbers_are_in_range(self) -> Self:
        _check_range("num_steps", self.num_steps, 1, MAX_STEPS)
        _check_range("num_images", self.num_images, 1, MAX_IMAGES)
        _check_range("seed", self.seed, 0, MAX_SEED - MAX_IMAGES)
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= 100:  # also refuses NaN
            raise InvalidValue("guidance_scale", self.guidance_scale, "a number from 0 to 100", "5 to 9 is usual")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise InvalidValue("strength", self.strength, "above 0, at most 1", "0.8 redraws most of the picture")
        _check_range("reuse", self.reuse, 1, MAX_STEPS)
        if self.guidance_interval is not None:
            check_interval("guidance_interval", self.guidance_interval)
        if self.guidance_kept is not None and not 0 <= self.guidance_kept <= 1:
            raise InvalidValue("guidance_kept", self.guidance_kept, "a share, 0 to 1", "0 adds nothing")
        for field in ("width", "height"):
            _check_size(field, getattr(self, field))
        for field in ("original_size", "crop_top_left"):
            pair = getattr(self, field)
            if pair is not None and not all(0 <= part <= 100_000 for part in pair):
                raise InvalidValue(field, pair, "two numbers of pixels, 0 to 100000", "correct it")
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        for field in ("mask", "strength"):
            if getattr(self, field) is not None and self.init_image is None:
                raise InvalidValue(field, getattr(self, field), "only with init_image", "give init_image or drop it")
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise _negative_without_guidance(self.negative_prompt)
        if self.precision is not None and PROFILES[self.profile or "exact"].routes[0].backend != "openvino":
            others = ", ".join(name for name, one in PROFILES.items() if one.routes[0].backend == "openvino")
            raise InvalidValue("precision", self.precision, f"only with a profile on OpenVINO: {others}", "name one")
        return self

    @property
    def drawn_by(self) -> ProfileSpec:
        """The profile, in the precision that the request names."""
        return PROFILES[self.profile or "exact"].in_precision(self.precision)

    def resolved(self, defaults: GenerationDefaults, init_size: tuple[int, int] | None = None) -> Self:
        """Return this request with every default filled in, so that it alone makes the same pictures again.

        `negative_prompt` stays None where neither the request nor the model names one, or guidance is off.

        Args:
            defaults: The model's own.
            init_size: (width, height) of the initial picture, in pixels, when there is one.

        Raises:
            InvalidValue: A setting would have no effect, or the initial picture's size does not fit.
        """
        profile = PROFILES[self.profile or "exact"]
        guidance_scale = _first(self.guidance_scale, _first(profile.guidance_scale, defaults.guidance_scale))
        negative_prompt = self.negative_prompt
        if guidance_scale <= 1 and negative_prompt:
            raise _negative_without_guidance(negative_prompt)
        if guidance_scale > 1 and self.default_negative:
            negative_prompt = _first(negative_prompt, defaults.negative_prompt)
        for field in ("guidance_interval", "guidance_kept"):
            if guidance_scale <= 1 and getattr(self, field) is not None:
                allowed = "only with guidance_scale above 1"
                raise InvalidValue(field, getattr(self, field), allowed, "raise it or drop this")
        num_steps = _first(self.num_steps, _first(profile.num_steps, defaults.num_steps))
        strength = self.strength
        if self.init_image is not None:
            strength = _first(strength, 1.0 if self.mask is not None else 0.8)
            if int(num_steps * strength) < 1:
                allowed = f"at least {math.ceil(100 / num_steps) / 100} with {num_steps} steps"
                raise InvalidValue("strength", strength, allowed, "raise strength or num_steps")
        width, height = self._size(defaults, init_size)
        interval = _first(self.guidance_interval, profile.guidance_interval) if guidance_scale > 1 else None
        kept = None if interval is None else self._kept(interval, profile)
        return self.model_copy(
            update={
                "guidance_scale": guidance_scale,
                "negative_prompt": negative_prompt,
                "default_negative": False,
                "num_steps": num_steps,
                "sampler": _first(self.sampler, _first(profile.sampler, defaults.sampler)),
                "seed": secrets.randbelow(_RANDOM_SEEDS) if self.seed is None else self.seed,
                "width": width,
                "height": height,
                "strength": strength,
                "original_size": self.original_size or (height, width),
                "crop_top_left": self.crop_top_left or (0, 0),
                "profile": profile.name,
                "guidance_interval": interval,
                "guidance_kept": kept,
                "reuse": _first(self.reuse, profile.reuse),
                "decoder": _first(self.decoder, profile.decoder),
            }
        )

    def changed(self, given: Mapping[str, Any]) -> Self:
        """Return this request, a resolved one, changed where `given` says so.

        What only followed from something that is changed goes with it: from another profile, from guidance that is
        now off or on, from another size.

        Args:
            given: Fields as a user wrote them.

        Raises:
            InvalidValue: A value is not allowed.
        """
        deciding = ("profile", "guidance_scale", "guidance_interval")
        said = self.from_dict({"prompt": self.prompt} | {field: given[field] for field in deciding if field in given})
        follows: set[str] = set()
        scale = _first(said.guidance_scale, self.guidance_scale)
        if said.profile is not None:
            old, new = PROFILES[self.profile or "exact"], PROFILES[said.profile]
            follows |= {*_OF_PROFILES, "precision"}
            follows |= {field for field in _OF_SOME_PROFILES if getattr(old, field) or getattr(new, field)}
            if "guidance_scale" in follows:
                scale = _first(said.guidance_scale, new.guidance_scale)
        was_guided, is_guided = ((one is None or one > 1) for one in (self.guidance_scale, scale))
        if was_guided and not is_guided:
            follows |= {"negative_prompt", "guidance_interval", "guidance_kept"}
        if is_guided and not was_guided:
            follows |= {"default_negative"}  # without guidance a request says nothing of negative prompts
        if said.guidance_interval is not None and said.guidance_interval[1] >= 1:
            follows |= {"guidance_kept"}
        if ("width" in given or "height" in given) and self.original_size == (self.height, self.width):
            follows |= {"original_size"}
        kept = {field: value for field, value in self.model_dump(mode="json").items() if field not in follows}
        return self.from_dict(kept | dict(given))

    def departs(self, defaults: GenerationDefaults) -> tuple[str, ...]:
        """Return the fields in which this request, a resolved one, says what neither its profile nor the model does.

        Where there are any, the profile's certificate tells nothing of its pictures.

        Args:
            defaults: The model's own.
        """
        plain = type(self)(prompt=self.prompt, profile=self.profile, seed=0).resolved(defaults)
        drawn = (*_OF_SOME_PROFILES, "guidance_interval", "guidance_kept", "reuse", "precision")
        return tuple(field for field in drawn if getattr(self, field) != getattr(plain, field))

    def _kept(self, interval: tuple[float, float], profile: ProfileSpec) -> float:
        """Return the share of guidance that acts after an interval: none where it lasts to the end."""
        if interval[1] < 1:
            return _first(self.guidance_kept, profile.guidance_kept)
        if self.guidance_kept:
            allowed = "only with a guidance_interval that ends before 1"
            raise InvalidValue("guidance_kept", self.guidance_kept, allowed, "end it sooner, as at 0.8, or drop this")
        return 0.0

    def _size(self, defaults: GenerationDefaults, init_size: tuple[int, int] | None) -> tuple[int, int]:
        """Return (width, height): the request's, else the initial picture's, else the model's."""
        default_width, default_height = init_size or (defaults.width, defaults.height)
        width, height = _first(self.width, default_width), _first(self.height, default_height)
        if init_size is not None and (width % SIZE_MULTIPLE_PX or height % SIZE_MULTIPLE_PX):
            remedy = f"resize it with width {_rounded(width)} and height {_rounded(height)}"
            raise InvalidValue(
                "init_image", f"{width}x{height} px", f"sides that are multiples of {SIZE_MULTIPLE_PX}", remedy
            )
        _check_size("width", width)
        _check_size("height", height)
        return width, height


def _first(value: _Value | None, default: _Value) -> _Value:
    """Return `value` unless it is None."""
    return default if value is None else value


def _rounded(size: int) -> int:
    """Return the nearest allowed size."""
    nearest = round(size / SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX
    return min(max(nearest, MIN_SIZE_PX), MAX_SIZE_PX)


def _check_range(field: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidValue(field, value, f"a whole number from {low} to {high}", "change the value")


def _check_size(field: str, value: int | None) -> None:
    if value is None:
        return
    if value % SIZE_MULTIPLE_PX or not MIN_SIZE_PX <= value <= MAX_SIZE_PX:
        allowed = f"a multiple of {SIZE_MULTIPLE_PX} from {MIN_SIZE_PX} to {MAX_SIZE_PX} pixels"
        near = sorted({_rounded(value - SIZE_MULTIPLE_PX // 2), _rounded(value + SIZE_MULTIPLE_PX // 2)})
        raise InvalidValue(field, value, allowed, f"use {' or '.join(map(str, near))}")


def _negative_without_guidance(negative_prompt: str) -> InvalidValue:
    return InvalidValue("negative_prompt", negative_prompt, "only with guidance_scale above 1", "raise it or drop this")
