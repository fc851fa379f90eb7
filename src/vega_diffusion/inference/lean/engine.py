"""Drawing from what is kept alone: numpy, tokenizers and OpenVINO; neither torch nor diffusers nor transformers.

It draws what `Engine` draws by the same profile, within 1 of 255 levels (tests); what it does not know, the caller
draws with `Engine`: `unsuited` and `open` say so before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy
from PIL import Image

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.backends.faults import BackendFault, Say
from vega_diffusion.inference.backends.open import Opening
from vega_diffusion.inference.backends.openvino_runtime import import_without_converter
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.inference.backends.store import Store
from vega_diffusion.inference.certificates import certificate_lines, find_certificate
from vega_diffusion.inference.images import GeneratedImage, OnStep, Progress
from vega_diffusion.inference.lean.bundle import Bundle, find_bundle, find_table
from vega_diffusion.inference.lean.networks import LeanNetworks, latent_shape
from vega_diffusion.inference.lean.noise import BLOCK, TorchNoise, rounded_to_bfloat16
from vega_diffusion.inference.lean.sampler_table import SamplerTable
from vega_diffusion.inference.lean.text import LeanTokenizer
from vega_diffusion.inference.lines import cut_text, departs_from_certified, no_tiny_decoder, not_finite_latents
from vega_diffusion.inference.metadata import PictureRecord
from vega_diffusion.inference.rules import tile_px_for
from vega_diffusion.inference.tiles import decode_tiled, tile_cells
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.profile import Decoder, StepPlan
from vega_diffusion.specs.request import GenerateRequest

Array = numpy.ndarray[Any, Any]
_Report = Callable[[int, int, Array], None]


def unsuited(request: GenerateRequest, device: str, dtype: str) -> str | None:
    """Return why a request needs torch, or None."""
    if request.drawn_by.routes[0].backend != "openvino":
        return "profile"
    if device not in ("auto", "cpu"):
        return "device"
    if dtype != "auto":
        return "dtype"
    if request.loras:
        return "loras"
    if request.init_image is not None:
        return "init_image"
    if request.prompt_syntax != "plain":
        return "prompt_syntax"
    return None


@dataclass(frozen=True)
class _Rows:
    """What the U-Net is told, one row: hidden states `[1, L, D]`, pooled `[1, P]`."""

    prompt_embeds: Array
    pooled_prompt_embeds: Array


@dataclass(frozen=True)
class Kept:
    """A model as it is kept: the name it was asked for by, its folder, and what belongs to them."""

    model: str
    folder: Path
    bundle: Bundle
    tokenizers: list[LeanTokenizer]
    table: SamplerTable


class LeanEngine:
    """One model and one profile, ready to draw one kind of request: its size, sampler and steps."""

    def __init__(self, kept: Kept, networks: LeanNetworks, decoder: Decoder, lines: list[str]) -> None:
        """Take what `open` found.

        Args:
            kept: The model.
            networks: Its own.
            decoder: Which autoencoder they decode with.
            lines: What backends say is appended here.
        """
        self._kept, self._networks, self._lines = kept, networks, lines
        self._decoder: Decoder = decoder

    @classmethod
    def open(
        cls,
        model: str,
        request: GenerateRequest,
        say: Say = lambda line: None,
        home: Path | None = None,
        rule: QuantisationRule | None = None,
    ) -> Self | None:
        """Return what draws a request, or None where something is not kept yet.

        Args:
            model: A name, a diffusers folder or a Hub id.
            request: One that is not `unsuited`.
            say: Gets a line about anything kept that is damaged.
            home: Where conversions are kept: `$VEGA_HOME/openvino` unless given.
            rule: As of `Engine.load`.

        Raises:
            VegaError: There is no such model, or the request does not suit it.
        """
        if find_spec("openvino") is None:
            return None
        import_without_converter()
        folder = resolve_model(model)
        store = Store(say, home)
        found = find_bundle(store, folder)
        if found is None:
            return None
        bundle, tokenizers = found
        resolved = request.resolved(bundle.spec.generation)
        assert resolved.sampler and resolved.num_steps and resolved.width and resolved.height, "a resolved request"
        if bundle.spec.unet.time_cond_proj_dim is not None:
            return None
        if bundle.dtype == "bfloat16" and math.prod(latent_shape(bundle, resolved)) % BLOCK:
            return None
        table = find_table(store, folder, resolved.sampler, resolved.num_steps)
        if table is None:
            return None
        lines: list[str] = []
        opening = Opening(say=lines.append, home=home, rule=rule or QuantisationRule())
        decoder: Decoder = "tiny" if resolved.decoder == "tiny" and bundle.tiny_digest is not None else "full"
        try:
            networks = LeanNetworks.open(bundle, resolved, decoder, opening)
        except BackendFault:
            for line in lines:  # of what was damaged, and is gone when the caller looks
                say(f"profile {resolved.profile}: {line}")
            return None
        return cls(Kept(model, folder, bundle, tokenizers, table), networks, decoder, lines)

    def stream(self, request: GenerateRequest, on_step: OnStep | None = None) -> Iterator[GeneratedImage]:
        """Draw the images of a request one after another.

        Args:
            request: What to draw; fields left None take the model's defaults.
            on_step: Called after every step of every image.

        Raises:
            VegaError: A value does not suit this model, or the numbers overflowed.
        """
        request = request.resolved(self._kept.bundle.spec.generation)
        plan = self._plan(request)
        saves = request.drawn_by.is_small
        if not saves:
            self._networks.compile_ahead(self._kept.bundle, request, plan)
        prompt, negative, warnings = self._encoded(request)
        if saves or not self._networks.is_small:
            for encoder in self._networks.text:
                encoder.close()  # large ones would take memory that the U-Net needs
        warnings += self._certified(request)
        assert request.num_images and request.seed is not None, "a resolved request"
        for index in range(request.num_images):
            one = request.model_copy(update={"seed": request.seed + index, "num_images": 1})
            latents = self._denoised(one, plan, prompt, negative, partial(self._report, on_step, index))
            record = self._record(one)  # while the U-Net is there
            if saves:
                self._networks.unet.close()
            image = self._decoded(latents, record.tile_px)
            if saves:
                self._networks.vae.close()
            yield GeneratedImage(_picture(image), one.seed or 0, record, warnings + self._said(one))

    def _plan(self, request: GenerateRequest) -> StepPlan:
        assert request.guidance_scale is not None, "a resolved request"
        interval, reuse = request.guidance_interval or (0.0, 1.0), request.reuse or 1
        return StepPlan.of(self._kept.table.num_evaluations, interval, reuse, request.guidance_scale > 1)

    def _encoded(self, request: GenerateRequest) -> tuple[_Rows, _Rows | None, tuple[str, ...]]:
        """Return the prompt, its negative where there is guidance, and warnings."""
        assert request.guidance_scale is not None, "a resolved request"
        prompt, warnings = self._row(request.prompt, "prompt")
        negative: _Rows | None = None
        if request.guidance_scale > 1:
            if request.negative_prompt is None and self._kept.bundle.spec.force_zeros_for_empty_prompt:
                negative = _Rows(numpy.zeros_like(prompt.prompt_embeds), numpy.zeros_like(prompt.pooled_prompt_embeds))
            else:
                negative, more = self._row(request.negative_prompt or "", "negative_prompt")
                warnings += more
        return prompt, negative, warnings

    def _row(self, text: str, field: str) -> tuple[_Rows, tuple[str, ...]]:
        """Encode a text literally."""
        hidden, pooled = [], None
        for tokenizer, encoder in zip(self._kept.tokenizers, self._networks.text, strict=True):
            states, *projected = encoder.run("text", {"token_ids": tokenizer.ids(text)})
            hidden.append(states)
            pooled = projected[0] if projected else pooled
        assert pooled is not None, "the second text encoder has a projection"
        cut = self._kept.tokenizers[0].cut(text)
        warnings = () if cut is None else (cut_text(field, self._kept.bundle.tokenizers[0].limit, cut),)
        return _Rows(numpy.concatenate(hidden, axis=-1), pooled), warnings

    def _denoised(
        self, request: GenerateRequest, plan: StepPlan, prompt: _Rows, negative: _Rows | None, report: _Report
    ) -> Array:
        """Return clean latents `[1, C, h, w]`."""
        assert request.guidance_scale is not None and request.seed is not None, "a resolved request"
        table, shape = self._kept.table, latent_shape(self._kept.bundle, request)
        generator = TorchNoise(request.seed)
        start = generator.normal(shape)
        if self._kept.bundle.dtype == "bfloat16":
            start = rounded_to_bfloat16(rounded_to_bfloat16(start) * numpy.float32(table.initial_sigma))
        else:
            start = start * numpy.float32(table.initial_sigma)
        sizes = self._time_ids(request)
        answers: list[Array] = []
        noise: list[Array] = []
        x_t, deep, difference = start, None, None
        scale, kept = request.guidance_scale, request.guidance_kept or 0.0
        for step, (guided, is_deep) in enumerate(zip(plan.guided, plan.deep, strict=True)):
            rows = [negative, prompt] if guided and negative is not None else [prompt]
            asked = {
                "x_t": numpy.concatenate([x_t * numpy.float32(table.input_scales[step])] * len(rows)),
                "timesteps": numpy.full(len(rows), table.timesteps[step], numpy.float32),
                "prompt_embeds": numpy.concatenate([row.prompt_embeds for row in rows]),
                "pooled_prompt_embeds": numpy.concatenate([row.pooled_prompt_embeds for row in rows]),
                "time_ids": numpy.concatenate([sizes] * len(rows)),
            }
            if is_deep:
                prediction, deep = self._networks.unet.run("full", asked)
            else:
                assert deep is not None, "the first step of a plan is a deep one"
                deep = deep[-len(rows) :]
                (prediction,) = self._networks.unet.run("shallow", asked | {"deep": deep})
            if len(rows) == 2:
                uncond, cond = prediction[:1], prediction[1:]
                difference = cond - uncond
                prediction = uncond + numpy.float32(scale) * difference
            elif difference is not None and kept:
                prediction = prediction + numpy.float32(kept * (scale - 1)) * difference
            answers.append(prediction)
            noise += [generator.normal(shape) for _ in range(int(table.num_draws[step]) - len(noise))]
            x_t = table.state(step, start, answers, noise)
            report(step + 1, table.num_evaluations, x_t)
        if not bool(numpy.isfinite(x_t).all()):
            raise VegaError(not_finite_latents("float32", "fewer steps or another sampler"))
        return x_t

    def _time_ids(self, request: GenerateRequest) -> Array:
        assert request.original_size and request.crop_top_left, "a resolved request"
        numbers = [*request.original_size, *request.crop_top_left, request.height, request.width]
        sizes = numpy.array([numbers], numpy.float32)
        return rounded_to_bfloat16(sizes) if self._kept.bundle.dtype == "bfloat16" else sizes

    def _decoded(self, latents: Array, tile_px: int | None = None) -> Array:
        """Return the image `[1, 3, H, W]` of clean latents."""
        bundle = self._kept.bundle
        factor = numpy.float32(bundle.scaling_factors[self._decoder])

        def decoded(part: Array) -> Array:
            (image,) = self._networks.vae.run("decoder", {"latents": part / factor})
            return image

        if tile_px is None:
            return decoded(latents)
        return decode_tiled(decoded, latents, *tile_cells(tile_px, bundle.spec.autoencoder.downscale))

    def _report(self, on_step: OnStep | None, index: int, step: int, num_steps: int, latents: Array) -> None:
        if on_step is not None:
            on_step(Progress(index, step, num_steps, lambda: _preview(self._decoded(latents))))

    def _said(self, request: GenerateRequest) -> tuple[str, ...]:
        """Return lines of backends that nobody has seen yet."""
        lines = tuple(f"profile {request.profile}: {line}" for line in self._lines)
        self._lines.clear()
        return lines if self._decoder == request.decoder else (*lines, no_tiny_decoder(self._kept.model))

    def _certified(self, request: GenerateRequest) -> tuple[str, ...]:
        profile, in_use = request.profile or "exact", self._networks.unet.in_use
        backend, precision, bundle = in_use.backend, in_use.precision, self._kept.bundle
        found = find_certificate(
            self._kept.folder, bundle.model_digest, profile, backend, precision, self._decoder, bundle.tiny_digest
        )
        departs = request.departs(bundle.spec.generation)
        if found is not None and departs:
            return (departs_from_certified(profile, departs),)
        return certificate_lines(found, profile, backend, precision, self._kept.model)

    def _record(self, request: GenerateRequest) -> PictureRecord:
        """Return what made an image."""
        in_use = self._networks.unet.in_use
        assert request.width and request.height, "a resolved request"
        return PictureRecord(
            request=request,
            model=self._kept.model,
            model_digest=self._kept.bundle.model_digest,
            dtype=self._kept.bundle.dtype,
            device="cpu",
            software={name: version(name) for name in ("vega-diffusion", "torch", "diffusers")},
            backend=in_use.backend,
            precision=in_use.precision,
            decoder=self._decoder,
            tiny_sha256=self._kept.bundle.tiny_digest if self._decoder == "tiny" else None,
            text_sha256=self._kept.bundle.text_digest,
            tile_px=tile_px_for(request.width, request.height, self._decoder, request.drawn_by.is_small),
        )


def _picture(image: Array) -> Image.Image:
    """Return `[1, 3, H, W]` in about -1..1 as a PIL picture (clamped, rounded to 8 bits)."""
    unit = (image[0] * numpy.float32(0.5) + numpy.float32(0.5)).clip(0, 1).transpose(1, 2, 0)
    return Image.fromarray((unit * 255).round().astype("uint8"))


def _preview(image: Array, most: int = 256) -> Image.Image:
    picture = _picture(image)
    picture.thumbnail((most, most))
    return picture
