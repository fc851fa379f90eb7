"""The engine: loads a model once, turns requests into pictures.

It composes the package's parts (prompts, denoising, autoencoder) and owns the order in which weights come and go; it
knows neither the command line nor HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from threading import Lock
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.adapters import Adapters, LoadedLora
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.denoise import Conditioning, Guidance, StepState, denoise
from vega_diffusion.inference.metadata import PictureRecord
from vega_diffusion.inference.pictures import decode_latents, tensor_to_picture
from vega_diffusion.inference.prompts import EncodedText, as_conditioning, encode_plain, time_ids
from vega_diffusion.inference.samplers import make_scheduler, set_steps
from vega_diffusion.inference.start import Sources, remaining_timesteps, starting_latents
from vega_diffusion.inference.weighting import encode_weighted, padded
from vega_diffusion.specs.request import GenerateRequest

_CACHED_TEXTS = 16
_PREVIEW_LATENT_CELLS = 32


@dataclass(frozen=True)
class GeneratedImage:
    """One picture and everything that made it.

    Attributes:
        image: The picture.
        seed: Its own seed: the request's plus its index.
        record: For the PNG's metadata.
        warnings: Lines the user should see.
    """

    image: Image.Image
    seed: int
    record: PictureRecord
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """What a progress callback gets after every step.

    Attributes:
        image_index: Which image of the request, from 0.
        step: Steps done.
        num_steps: Steps in all.
        preview: Call it for a PIL picture of the present state, at most 256 px a side (costs a small decode).
    """

    image_index: int
    step: int
    num_steps: int
    preview: Callable[[], Image.Image]


OnStep = Callable[[Progress], None]
IsCancelled = Callable[[], bool]


class Engine:
    """One loaded model that draws; safe to call from several threads."""

    def __init__(self, components: Components, max_batch: int = 1) -> None:
        """Wrap loaded components.

        Args:
            components: The model's parts, and where and how they run.
            max_batch: Images that share a U-Net call. 1 keeps float32 pictures bit-equal whatever is made beside
                them; more is faster on a GPU and stays within 1 of 255 levels (bit-equal in bfloat16 on a CPU).
        """
        self.components = components
        self.max_batch = max_batch
        self.adapters = Adapters(components)
        self._texts: OrderedDict[tuple[object, ...], EncodedText] = OrderedDict()
        self._texts_lock = Lock()

    @classmethod
    def load(
        cls, model: str = "vega-mini", device: str = "auto", dtype: str = "auto", low_memory: bool | None = None
    ) -> Self:
        """Find a model and choose where and how it runs; weights are read at first use.

        Args:
            model: A name (`vega-mini`), a diffusers folder, or a Hub id.
            device: `auto`, `cpu`, `cuda`, `mps` or `xpu`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            low_memory: Drop each part after its use. None: when the weights would take much of the memory.

        Raises:
            VegaError: No such model, device or dtype; or the folder is not a whole SDXL-shaped model.
        """
        return cls(Components.open(model, device, dtype, low_memory))

    def generate(
        self,
        request: GenerateRequest,
        on_step: OnStep | None = None,
        is_cancelled: IsCancelled | None = None,
        pictures: Mapping[str, Image.Image] | None = None,
    ) -> list[GeneratedImage]:
        """Draw all images of a request; arguments and errors as in `stream`."""
        return list(self.stream(request, on_step, is_cancelled, pictures))

    def stream(
        self,
        request: GenerateRequest,
        on_step: OnStep | None = None,
        is_cancelled: IsCancelled | None = None,
        pictures: Mapping[str, Image.Image] | None = None,
    ) -> Iterator[GeneratedImage]:
        """Draw the images of a request one after another.

        Args:
            request: What to draw; fields left None take the model's defaults.
            on_step: Called after every step of every image.
            is_cancelled: Asked before every step.
            pictures: Pictures in memory that `request.init_image` and `request.mask` may name; other names are paths.

        Raises:
            Cancelled: `is_cancelled` returned True.
            VegaError: A value does not suit this model, a picture cannot be read, or the numbers overflowed.
        """
        sources = Sources.open(request, pictures or {})
        resolved = request.resolved(self.components.spec.generation, sources.size)
        loras = self.adapters.load(resolved.loras)
        with self.adapters.injected(loras):
            prompt, guidance, warnings = self._conditioned(resolved, loras)
        for first in range(0, resolved.num_images, self.max_batch):
            indices = range(first, min(first + self.max_batch, resolved.num_images))
            with self.adapters.injected(loras):
                latents = self._denoised(resolved, indices, prompt, guidance, sources, on_step, is_cancelled)
            if self.components.low_memory and indices.stop == resolved.num_images:
                self.components.release("unet")
            for index, row in zip(indices, latents.split(1), strict=True):
                image, decode_warnings = decode_latents(self.components.vae(), row)
                yield GeneratedImage(
                    tensor_to_picture(image),
                    _seed(resolved, index),
                    self._record(resolved, index, sources, loras),
                    warnings + decode_warnings,
                )

    def check_repeats(
        self, record: PictureRecord, request: GenerateRequest, pictures: Mapping[str, Image.Image] | None = None
    ) -> tuple[str, ...]:
        """Check that this engine can make a recorded picture again.

        Args:
            record: Of the picture.
            request: Its request, perhaps changed.
            pictures: As for `stream`.

        Returns:
            Warnings about what may move single pixels: another device or version of torch.

        Raises:
            VegaError: The weights, or an initial picture or LoRA that the request still names, are not those of the
                record.
        """
        if record.model_digest != self.components.digest:
            raise VegaError(
                f"from: the picture was made by weights {record.model_digest[:10]}, {self.components.name!r} now "
                f"holds {self.components.digest[:10]}; allowed: the same weights; name a model to draw it with others"
            )
        sources = Sources.open(request, pictures or {})
        for field, then, now in (
            ("init_image", record.init_image_sha256, sources.init_image_sha256),
            ("mask", record.mask_sha256, sources.mask_sha256),
        ):
            name = getattr(request, field)
            if name == getattr(record.request, field) and then != now:
                raise VegaError(f"{field}: {name!r} has changed since; allowed: the same picture; name another one")
        self.adapters.check(request.loras, dict(zip(record.request.loras, record.loras_sha256, strict=False)))
        here = {"device": self.components.device.type, "torch": version("torch")}
        there = {"device": record.device, "torch": record.software.get("torch", "?")}
        return tuple(
            f"{key} was {there[key]} and is {here[key]}: single pixels may differ"
            for key in here
            if here[key] != there[key]
        )

    def _conditioned(
        self, request: GenerateRequest, loras: tuple[LoadedLora, ...]
    ) -> tuple[Conditioning, Guidance, tuple[str, ...]]:
        """Encode the prompts of a resolved request: its row, its guidance, and warnings."""
        assert request.guidance_scale is not None, "a resolved request"
        prompt = self._encoded(request.prompt, request.prompt_syntax, "prompt", loras)
        negative: EncodedText | None = None
        # U-Nets distilled to take the scale as an input do their own guidance.
        if request.guidance_scale > 1 and self.components.spec.unet.time_cond_proj_dim is None:
            if request.negative_prompt is not None:
                negative = self._encoded(request.negative_prompt, request.prompt_syntax, "negative_prompt", loras)
            elif self.components.spec.force_zeros_for_empty_prompt:
                negative = prompt.zeros()
            else:
                negative = self._encoded("", "plain", "negative_prompt", loras)
            prompt, negative = self._equally_long(prompt, negative, loras)
        if self.components.low_memory:
            self.components.release("text")
        sizes = time_ids(request, self.components.dtype, self.components.device)
        guidance = Guidance(request.guidance_scale, None if negative is None else as_conditioning(negative, sizes))
        warnings = prompt.warnings + (() if negative is None else negative.warnings)
        return as_conditioning(prompt, sizes), guidance, warnings

    def _equally_long(
        self, first: EncodedText, second: EncodedText, loras: tuple[LoadedLora, ...]
    ) -> tuple[EncodedText, EncodedText]:
        """Lengthen the shorter of two texts; only weighted ones differ."""
        length = max(first.prompt_embeds.shape[1], second.prompt_embeds.shape[1])
        if first.prompt_embeds.shape[1] == second.prompt_embeds.shape[1]:
            return first, second
        empty = self._encoded("", "plain", "prompt", loras)
        return padded(first, length, empty), padded(second, length, empty)

    def _encoded(self, text: str, syntax: str, field: str, loras: tuple[LoadedLora, ...]) -> EncodedText:
        """Encode a text, or take it from the small cache of recent ones under the same LoRAs of text encoders."""
        key = (text, syntax, field, self.adapters.text_key(loras))
        with self._texts_lock:
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key]
        encode = encode_weighted if syntax == "weighted" else encode_plain
        encoded = encode(self.adapters.text_stack(), text, field)
        with self._texts_lock:
            self._texts[key] = encoded
            if len(self._texts) > _CACHED_TEXTS:
                self._texts.popitem(last=False)
        return encoded

    def _denoised(
        self,
        request: GenerateRequest,
        indices: range,
        prompt: Conditioning,
        guidance: Guidance,
        sources: Sources,
        on_step: OnStep | None,
        is_cancelled: IsCancelled | None,
    ) -> Tensor:
        """Return clean latents `[len(indices), C, h, w]` of some of a resolved request's images."""
        assert request.sampler is not None and request.num_steps is not None, "a resolved request"
        scheduler = make_scheduler(request.sampler, self.components.scheduler_config)
        set_steps(scheduler, request.sampler, request.num_steps, self.components.device)
        timesteps = remaining_timesteps(scheduler, request.num_steps, request.strength)
        generators = [torch.Generator("cpu").manual_seed(_seed(request, index)) for index in indices]
        start = starting_latents(self.components, request, sources, scheduler, timesteps, generators)
        rows = len(indices)
        if guidance.negative is not None:
            guidance = Guidance(guidance.scale, guidance.negative.repeated(rows))
        return denoise(
            self.adapters.unet(),
            scheduler,
            timesteps,
            start.latents,
            prompt.repeated(rows),
            guidance,
            generators,
            start.kept,
            None if on_step is None else partial(self._report, on_step, indices),
            is_cancelled,
        )

    def _report(self, on_step: OnStep, indices: range, state: StepState) -> None:
        """Tell the caller about a step, once for every image in the batch."""
        for row, index in enumerate(indices):
            on_step(Progress(index, state.step, state.num_steps, partial(self._preview, state, row)))

    def _preview(self, state: StepState, row: int) -> Image.Image:
        """Decode the model's present guess of an image, shrunk to at most 256 px a side."""
        latents = (state.latents if state.x0 is None else state.x0)[row : row + 1].float()
        cells = max(latents.shape[-2:])
        if cells > _PREVIEW_LATENT_CELLS:
            scale = _PREVIEW_LATENT_CELLS / cells
            latents = torch.nn.functional.interpolate(latents, scale_factor=scale, mode="area")
        image, _ = decode_latents(self.components.vae(), latents.to(self.components.dtype))
        return tensor_to_picture(image)

    def _record(
        self, request: GenerateRequest, index: int, sources: Sources, loras: tuple[LoadedLora, ...]
    ) -> PictureRecord:
        """Return what made image `index`, as a request for that image alone."""
        return PictureRecord(
            request=request.model_copy(update={"seed": _seed(request, index), "num_images": 1}),
            model=self.components.name,
            model_digest=self.components.digest,
            dtype=str(self.components.dtype).removeprefix("torch."),
            device=self.components.device.type,
            software={name: version(name) for name in ("vega-diffusion", "torch", "diffusers")},
            init_image_sha256=sources.init_image_sha256,
            mask_sha256=sources.mask_sha256,
            loras_sha256=tuple(lora.sha256 for lora in loras),
        )


def _seed(request: GenerateRequest, index: int) -> int:
    """Return the seed of image `index`: a function of the request and the index alone."""
    assert request.seed is not None, "a resolved request"
    return request.seed + index
