"""The engine: loads a model once, turns requests into pictures.

It composes the package's parts (prompts, denoising, autoencoder) and owns the order in which weights come and go; it
knows neither the command line nor HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.adapters import Adapters, LoadedLora, lora_key
from vega_diffusion.inference.backends.calibration import Drawn, record_questions
from vega_diffusion.inference.backends.faults import Say
from vega_diffusion.inference.backends.open import PartName
from vega_diffusion.inference.backends.progress import shown
from vega_diffusion.inference.backends.protocol import GUIDED_ROWS, Denoiser, InUse
from vega_diffusion.inference.backends.quantise_rule import QuantisationRule
from vega_diffusion.inference.backends.torch_eager import TorchEager
from vega_diffusion.inference.certificates import certificate_lines, find_certificate
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.denoise import Conditioning, Guidance, ImageRun, StepState, denoise
from vega_diffusion.inference.images import GeneratedImage, OnStep, Progress
from vega_diffusion.inference.lines import departs_from_certified
from vega_diffusion.inference.memory import is_out_of_memory, told_in_one_line
from vega_diffusion.inference.metadata import PictureRecord
from vega_diffusion.inference.packing import FixedRows, Packed, Packer
from vega_diffusion.inference.pictures import tensor_to_picture, unscaled
from vega_diffusion.inference.prompts import EncodedText, as_conditioning, encode_plain, time_ids
from vega_diffusion.inference.repeats import check_repeats
from vega_diffusion.inference.routes import Opened, Routes
from vega_diffusion.inference.rules import TILE_PX
from vega_diffusion.inference.samplers import make_scheduler, set_steps
from vega_diffusion.inference.start import Sources, remaining_timesteps, starting_latents
from vega_diffusion.inference.vae_policy import choose_vae, decoder_there, planned_tile_px
from vega_diffusion.inference.weighting import encode_weighted, padded
from vega_diffusion.specs.certificate import Certificate
from vega_diffusion.specs.profile import Decoder, StepPlan
from vega_diffusion.specs.request import GenerateRequest

_CACHED_TEXTS = 16
# What low precision is calibrated on: objects, colours, counts, places and styles, so that every part of a U-Net works.
CALIBRATION_PROMPTS = (
    "a cat next to a slice of pizza",
    "two red apples on a blue background",
    "a dog in the snow",
    "a portrait of an old woman, oil painting",
    "a yellow car left of a green tree",
    "a city street at night, neon lights, rain",
    "three mushrooms in a forest",
    "a rocket in space, flat style",
    "a bowl of fruit on a wooden table, photograph",
    "a fox on the beach, line art",
    "a blue umbrella above a brown dog",
    "mountains at sunrise, wide view, highly detailed",
)
_PREVIEW_LATENT_CELLS = 32


IsCancelled = Callable[[], bool]


@dataclass(frozen=True)
class _Job:
    """A resolved request with all that its images share."""

    request: GenerateRequest
    sources: Sources
    loras: tuple[LoadedLora, ...]
    prompt: Conditioning
    guidance: Guidance
    opened: Opened
    warnings: tuple[str, ...]

    @property
    def denoiser(self) -> Denoiser:
        """The U-Net."""
        return self.opened.denoiser


class Engine:
    """One loaded model that draws; safe to call from several threads."""

    def __init__(
        self,
        components: Components,
        max_batch: int = 1,
        may_compile: bool = False,
        rule: QuantisationRule | None = None,
    ) -> None:
        """Wrap loaded components.

        Args:
            components: The model's parts, and where and how they run.
            max_batch: Images that share a U-Net call. 1 keeps float32 pictures bit-equal whatever is made beside
                them; more is faster on a GPU and stays within 1 of 255 levels (bit-equal in bfloat16 on a CPU).
            may_compile: As for `load`.
            rule: As for `load`.
        """
        self.components = components
        self.max_batch = max_batch
        self.adapters = Adapters(components)
        self.routes = Routes(components, self.adapters, self._draw_to_calibrate, rule, may_compile)
        self._texts: OrderedDict[tuple[object, ...], EncodedText] = OrderedDict()
        self._texts_lock = Lock()

    @classmethod
    def load(
        cls,
        model: str = "vega-mini",
        device: str = "auto",
        dtype: str = "auto",
        low_memory: bool | None = None,
        may_compile: bool = False,
        rule: QuantisationRule | None = None,
    ) -> Self:
        """Find a model and choose where and how it runs; weights are read at first use.

        Args:
            model: A name (`vega-mini`), a diffusers folder, or a Hub id.
            device: `auto`, `cpu`, `cuda`, `mps` or `xpu`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            low_memory: Drop each part after its use. None: when the weights would take much of the memory.
            may_compile: Let profiles other than `exact` compile the U-Net by torch where OpenVINO does not run it: a
                minute or less at the first picture of a size, half the time of all others on a GPU.
            rule: By which the int8 U-Net was or will be made; None: that of `vega calibrate`. Certificates are for
                that one.

        Raises:
            VegaError: No such model, device or dtype; or the folder is not a whole SDXL-shaped model.
        """
        return cls(Components.open(model, device, dtype, low_memory), may_compile=may_compile, rule=rule)

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
        job = self._job(request, pictures or {})
        count = job.request.num_images
        for first in range(0, count, self.max_batch):
            indices = range(first, min(first + self.max_batch, count))
            with self.adapters.injected(job.loras), told_in_one_line(job.request):
                latents = denoise(job.denoiser, self._started(job, indices, on_step, is_cancelled))
                in_use = job.denoiser.in_use  # asked while the U-Net is there
            if self.components.low_memory and indices.stop == count:
                self.components.release("unet")
            if request.drawn_by.is_small and job.opened.parts is not None:
                job.denoiser.close()  # what OpenVINO has compiled: the next picture opens it again
            for index, row in zip(indices, latents.split(1), strict=True):
                yield self._finished(job, index, row, in_use)

    def route_of(self, request: GenerateRequest) -> InUse:
        """Return what would run the U-Net for a request.

        Raises:
            VegaError: A LoRA cannot be read.
        """
        loras = self.adapters.load(request.loras)
        return self.routes.open(request.drawn_by, loras).denoiser.in_use

    def latents(self, request: GenerateRequest) -> Iterator[Tensor]:
        """Yield the clean latents `[1, C, h, w]` of a request's images, which `stream` would decode.

        Raises:
            VegaError: As `stream`.
        """
        job = self._job(request, {})
        for index in range(job.request.num_images):
            with self.adapters.injected(job.loras):
                found = denoise(job.denoiser, self._started(job, range(index, index + 1), None, None))
            yield found  # outside the block: others draw under other LoRAs meanwhile

    def stream_many(
        self,
        requests: Sequence[GenerateRequest],
        max_rows: int = 16,
        pictures: Mapping[str, Image.Image] | None = None,
        fixed_rows: bool = False,
    ) -> Iterator[tuple[int, GeneratedImage]]:
        """Draw the images of several requests together: steps of different requests share U-Net evaluations.

        In torch, requests under different LoRAs share them, too, each row with weights of its own; elsewhere they take
        turns, as does what differs in shape, in the length of its text or in its backend. An image is the same as alone
        within 1 of 255 levels (bit-equal in bfloat16 on a CPU).

        Args:
            requests: What to draw.
            max_rows: Most rows of one evaluation; an image is one row, and two while it is guided.
            pictures: As for `stream`.
            fixed_rows: Fill every evaluation up to `max_rows`, so that kernels never change: an image is then the same
                bits in any company, alone with the same `max_rows` included, where kernels treat equal rows alike.

        Yields:
            Each image as soon as it is done, with the number of its request.

        Raises:
            VegaError: As `stream`; before anything is drawn where a request does not suit the model.
            InvalidValue: `max_rows` holds no guided image.
        """
        if max_rows < GUIDED_ROWS:
            raise InvalidValue("max_rows", max_rows, f"{GUIDED_ROWS} or more, as a guided image takes", "raise it")
        jobs = [self._job(request, pictures or {}) for request in requests]
        packer, whose = Packer(max_rows, self._during), {}
        filled: dict[int, Denoiser] = {}
        for number, job in enumerate(jobs):
            denoiser = job.denoiser
            if fixed_rows:
                denoiser = filled.setdefault(id(denoiser), FixedRows(denoiser, max_rows))
            for index in range(job.request.num_images):
                run = self._started(job, range(index, index + 1), None, None)
                whose[id(run)] = number, index
                by_rows = isinstance(job.denoiser, TorchEager)
                packer.add(Packed(run, denoiser, () if by_rows else lora_key(job.loras), job))
        for run, _ in packer.drain():
            number, index = whose[id(run)]
            yield number, self._finished(jobs[number], index, run.latents, jobs[number].denoiser.in_use)

    @contextmanager
    def _during(self, chosen: Sequence[Packed]) -> Iterator[None]:
        """Hold the U-Net's weights in the state that the rows of one evaluation need; their owners are jobs."""
        groups = [(packed.run.num_rows, packed.owner.loras) for packed in chosen]
        with self.adapters.by_rows(groups), told_in_one_line(chosen[0].owner.request):
            yield

    def check_repeats(
        self, record: PictureRecord, request: GenerateRequest, pictures: Mapping[str, Image.Image] | None = None
    ) -> tuple[str, ...]:
        """Check that this engine can make a recorded picture again.

        Args:
            record: Of the picture.
            request: Its request, perhaps changed.
            pictures: As for `stream`.

        Returns:
            Warnings, a line each about what makes another picture or may move single pixels.

        Raises:
            VegaError: The weights, or an initial picture or LoRA that the request still names, are not those of the
                record.
        """
        return check_repeats(record, request, pictures or {}, self.components, self.adapters, self.route_of)

    def _job(self, request: GenerateRequest, pictures: Mapping[str, Image.Image]) -> _Job:
        """Prepare a request: read its pictures and LoRAs, encode its text, open the U-Net of its profile."""
        sources = Sources.open(request, pictures)
        resolved = request.resolved(self.components.spec.generation, sources.size)
        loras = self.adapters.load(resolved.loras)
        opened = self.routes.open(resolved.drawn_by, loras)
        with self.adapters.injected(loras):
            prompt, guidance, warnings = self._conditioned(resolved, loras, opened)
        warnings += opened.said() + self._certified(resolved, opened.denoiser)
        return _Job(resolved, sources, loras, prompt, guidance, opened, warnings)

    def certificate(self, request: GenerateRequest, denoiser: Denoiser) -> Certificate | None:
        """Return what is known of a resolved request's profile for these weights as this U-Net runs them."""
        parts, in_use, profile = self.components, denoiser.in_use, request.profile or "exact"
        decoder = decoder_there(parts, request.decoder)
        return find_certificate(
            parts.folder, parts.digest, profile, in_use.backend, in_use.precision, decoder, parts.tiny_digest()
        )

    def _draw_to_calibrate(self, count: int) -> Drawn:
        """Draw `CALIBRATION_PROMPTS`, each with the model's own settings; keep so many of the U-Net's questions."""
        latents: list[Tensor] = []

        def draw(denoiser: Denoiser) -> None:
            for seed, prompt in enumerate(shown(CALIBRATION_PROMPTS, "drawing to calibrate")):
                job = self._job(GenerateRequest(prompt=prompt, seed=seed), {})
                with self.adapters.injected(()):
                    found = denoise(denoiser, self._started(job, range(1), None, None))
                latents.append(unscaled(self.components.vae(), found.float()))

        questions = record_questions(draw, TorchEager(self.adapters.unet), count)
        return Drawn(questions, latents)

    def calibrate(self, say: Say) -> dict[PartName, Path]:
        """Make this model's int8 U-Net and decoder and return their folders; profiles then take them.

        Where it is kept already, nothing is made. An engine of another process takes it when it is loaded anew.

        Args:
            say: Gets every line that a user should see.

        Raises:
            BackendFault: OpenVINO or NNCF is not installed.
        """
        return self.routes.calibrate(say)

    def _certified(self, request: GenerateRequest, denoiser: Denoiser) -> tuple[str, ...]:
        """Return the line that says what a profile costs, or that nobody measured it; or nothing."""
        in_use, profile = denoiser.in_use, request.profile or "exact"
        certificate = self.certificate(request, denoiser)
        departs = request.departs(self.components.spec.generation)
        if certificate is not None and departs:
            return (departs_from_certified(profile, departs),)
        return certificate_lines(certificate, profile, in_use.backend, in_use.precision, self.components.name)

    def decode(self, request: GenerateRequest, latents: Tensor) -> Tensor:
        """Return the image `[1, 3, H, W]`, in about -1..1, of clean latents `[1, C, h, w]` as `stream` would decode it.

        Raises:
            VegaError: As `stream`.
        """
        return self._decoded(self._job(request, {}), latents)[0]

    def _finished(self, job: _Job, index: int, latents: Tensor, in_use: InUse) -> GeneratedImage:
        """Decode an image's clean latents `[1, C, h, w]`, and put down what made it."""
        image, decoder, tile_px, warnings = self._decoded(job, latents)
        record = self._record(job, index, decoder, tile_px, in_use)
        return GeneratedImage(tensor_to_picture(image), record.request.seed or 0, record, job.warnings + warnings)

    def _decoded(self, job: _Job, latents: Tensor) -> tuple[Tensor, Decoder, int | None, tuple[str, ...]]:
        """Return the image of clean latents, which autoencoder and tiles it is from, and lines for the user."""
        request = job.request
        chosen = choose_vae(job.opened.parts or self.components, "final", request.decoder)
        tile = planned_tile_px(self.components, request, chosen.decoder)
        with told_in_one_line(request):
            try:
                image, warnings = chosen.decode(latents, tile)
            except (RuntimeError, MemoryError) as error:
                if tile is not None or not is_out_of_memory(error):
                    raise
                tile = TILE_PX
                image, warnings = chosen.decode(latents, tile)
                warnings += (f"decoded in tiles of {TILE_PX} px: there was no memory for the whole picture",)
        return image, chosen.decoder, tile, warnings + job.opened.said()

    def _conditioned(
        self, request: GenerateRequest, loras: tuple[LoadedLora, ...], opened: Opened
    ) -> tuple[Conditioning, Guidance, tuple[str, ...]]:
        """Encode the prompts of a resolved request: its row, its guidance, and warnings."""
        assert request.guidance_scale is not None, "a resolved request"
        encoded = partial(self._encoded, loras=loras, opened=opened)
        prompt = encoded(request.prompt, request.prompt_syntax, "prompt")
        negative: EncodedText | None = None
        # U-Nets distilled to take the scale as an input do their own guidance.
        if request.guidance_scale > 1 and self.components.spec.unet.time_cond_proj_dim is None:
            if request.negative_prompt is not None:
                negative = encoded(request.negative_prompt, request.prompt_syntax, "negative_prompt")
            elif self.components.spec.force_zeros_for_empty_prompt:
                negative = prompt.zeros()
            else:
                negative = encoded("", "plain", "negative_prompt")
            if prompt.prompt_embeds.shape[1] != negative.prompt_embeds.shape[1]:  # weighted ones
                empty = encoded("", "plain", "prompt")
                length = max(prompt.prompt_embeds.shape[1], negative.prompt_embeds.shape[1])
                prompt, negative = padded(prompt, length, empty), padded(negative, length, empty)
        if self.components.low_memory or request.drawn_by.is_small:
            self.components.release("text")
            if opened.parts is not None:
                opened.parts.release_text()
        sizes = time_ids(request, self.components.dtype, self.components.device)
        against = None if negative is None else as_conditioning(negative, sizes)
        guidance = Guidance(request.guidance_scale, against, request.guidance_kept or 0.0)
        warnings = prompt.warnings + (() if negative is None else negative.warnings)
        return as_conditioning(prompt, sizes), guidance, warnings

    def _encoded(
        self, text: str, syntax: str, field: str, loras: tuple[LoadedLora, ...], opened: Opened
    ) -> EncodedText:
        """Encode a text, or take it from the small cache of recent ones under the same LoRAs of text encoders.

        Plain texts are encoded by the backend that serves the request, but for LoRAs, which live in torch.
        """
        under = self.adapters.text_key(loras)
        parts = None if under or syntax == "weighted" else opened.parts
        key = (text, syntax, field, under, id(parts))
        with self._texts_lock:
            if key in self._texts:
                self._texts.move_to_end(key)
                return self._texts[key]
        if syntax == "weighted":
            encoded = encode_weighted(self.adapters.text_stack(), text, field)
        else:
            encoded = encode_plain(self.adapters.text_stack() if parts is None else parts.text(), text, field)
        with self._texts_lock:
            self._texts[key] = encoded
            if len(self._texts) > _CACHED_TEXTS:
                self._texts.popitem(last=False)
        return encoded

    def _started(self, job: _Job, indices: range, on_step: OnStep | None, is_cancelled: IsCancelled | None) -> ImageRun:
        """Return some of a request's images at the start of their way."""
        request, guidance = job.request, job.guidance
        assert request.sampler is not None and request.num_steps is not None, "a resolved request"
        scheduler = make_scheduler(request.sampler, self.components.scheduler_config)
        set_steps(scheduler, request.sampler, request.num_steps, self.components.device)
        timesteps = remaining_timesteps(scheduler, request.num_steps, request.strength)
        generators = [torch.Generator("cpu").manual_seed(_seed(request, index)) for index in indices]
        start = starting_latents(self.components, request, job.sources, scheduler, timesteps, generators)
        if job.opened.parts is not None:
            start = start.in_float32()  # what OpenVINO answers in
        rows = len(indices)
        if guidance.negative is not None:
            guidance = replace(guidance, negative=guidance.negative.repeated(rows))
        interval, reuse = request.guidance_interval or (0.0, 1.0), request.reuse or 1
        return ImageRun(
            scheduler,
            timesteps,
            start.latents,
            job.prompt.repeated(rows),
            guidance,
            generators,
            StepPlan.of(len(timesteps), interval, reuse, guidance.negative is not None),
            start.kept,
            None if on_step is None else partial(self._report, on_step, indices),
            is_cancelled,
            self.components.spec.unet.time_cond_proj_dim,
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
        image, _ = choose_vae(self.components, "preview").decode(latents.to(self.components.dtype))
        return tensor_to_picture(image)

    def _record(self, job: _Job, index: int, decoder: Decoder, tile_px: int | None, in_use: InUse) -> PictureRecord:
        """Return what made image `index`, as a request for that image alone."""
        request, sources = job.request, job.sources
        return PictureRecord(
            request=request.model_copy(update={"seed": _seed(request, index), "num_images": 1}),
            model=self.components.name,
            model_digest=self.components.digest,
            dtype=str(self.components.dtype).removeprefix("torch."),
            device=self.components.device.type,
            software={name: version(name) for name in ("vega-diffusion", "torch", "diffusers")},
            init_image_sha256=sources.init_image_sha256,
            mask_sha256=sources.mask_sha256,
            loras_sha256=tuple(lora.sha256 for lora in job.loras),
            backend=in_use.backend,
            precision=in_use.precision,
            decoder=decoder,
            tiny_sha256=self.components.tiny_digest() if decoder == "tiny" else None,
            text_sha256=self.components.text_digest,
            tile_px=tile_px,
        )


def _seed(request: GenerateRequest, index: int) -> int:
    """Return the seed of image `index`: a function of the request and the index alone."""
    assert request.seed is not None, "a resolved request"
    return request.seed + index
