"""The networks that one kind of request takes, opened from what is kept and compiled while others already run."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Thread
from typing import TYPE_CHECKING, Self

from vega_diffusion.inference.backends.open import (
    Opening,
    Weights,
    decoder_beside,
    is_calibrated,
    open_networks,
    open_unet,
    precision_beside,
)
from vega_diffusion.inference.backends.protocol import Precision
from vega_diffusion.inference.lean.bundle import Bundle
from vega_diffusion.inference.lines import NOT_CALIBRATED
from vega_diffusion.inference.rules import OPENVINO_THREADS, is_small_work, openvino_streams
from vega_diffusion.specs.profile import Decoder, Route, StepPlan
from vega_diffusion.specs.request import GenerateRequest

if TYPE_CHECKING:
    from vega_diffusion.inference.backends.openvino_denoiser import Guarded, Networks


@dataclass(frozen=True)
class LeanNetworks:
    """U-Net, both text encoders and a decoder, compiled at first use.

    Attributes:
        unet: Graphs `full` and `shallow`.
        text: Graph `text` of the first and the second encoder.
        vae: Graph `decoder`.
        is_small: Whether they are so small that they may stay open beside one another.
    """

    unet: Networks
    text: tuple[Guarded, Guarded]
    vae: Guarded
    is_small: bool

    @classmethod
    def open(cls, bundle: Bundle, request: GenerateRequest, decoder: Decoder, opening: Opening) -> Self:
        """Find the networks of a resolved request's profile; nothing is compiled yet.

        Args:
            bundle: The model.
            request: Resolved.
            decoder: Which autoencoder decodes; the tiny one only where the bundle has one.
            opening: How they are opened; the number of threads is chosen here.

        Raises:
            BackendFault: One is not kept.
        """
        cells = latent_shape(bundle, request)
        is_small = is_small_work(bundle.unet_parameters, cells[-1] * cells[-2])
        told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        threads = int(told) if told.isdigit() else bundle.default_threads
        if is_small and not told.isdigit():
            threads = min(threads, OPENVINO_THREADS)
        streams = openvino_streams(bundle.unet_parameters, threads)
        opening = replace(opening, num_threads=threads, num_streams=streams)
        own = Weights(bundle.model_digest, None)
        routes = [route for route in request.drawn_by.routes if route.backend == "openvino"]
        route = next(route for route in routes if route.precision != "int8" or _is_there(route, own.digest, opening))
        opening = replace(opening, max_rows=1) if route.is_small else opening
        assert route.precision != "own", "OpenVINO's routes name theirs"
        unet = open_unet(route.precision, own, opening, wide_from=route.wide_from)
        wide, beside = precision_beside(unet.in_use.precision), replace(opening, max_shapes=2)
        of_text: Precision = "int8-weights" if route.is_small else wide
        text = tuple(open_networks(what, of_text, own, beside) for what in ("text-encoder", "text-encoder-2"))
        if decoder == "tiny":
            assert bundle.tiny_digest is not None, "the tiny autoencoder is there"
            vae = open_networks("tiny-vae-decoder", wide, Weights(bundle.tiny_digest, None), beside)
        else:
            vae = open_networks("vae-decoder", decoder_beside(unet.in_use.precision), own, beside)
        return cls(unet, (text[0], text[1]), vae, is_small)

    def compile_ahead(self, bundle: Bundle, request: GenerateRequest, plan: StepPlan) -> None:
        """Compile what a request will ask for, in its order, in a thread beside the caller's.

        What fails there fails again, and is told, where it is asked for.
        """
        latents = latent_shape(bundle, request)
        wanted = [(self.unet, "full", _unet_shapes(bundle, rows, latents)) for rows in dict.fromkeys(_rows(plan))]
        wanted.append((self.vae, "decoder", {"latents": latents}))

        def compile_all() -> None:
            with suppress(Exception):
                for networks, graph, shapes in wanted:
                    networks.prepare(graph, shapes)

        Thread(target=compile_all).start()


def _is_there(route: Route, digest: str, opening: Opening) -> bool:
    """Return whether a route of int8 can be taken; a line says so where it no longer can, or was asked for by name."""
    lines: list[str] = []
    is_there = is_calibrated(digest, replace(opening, say=lines.append))
    if not is_there and route.is_small and not lines:
        lines.append(NOT_CALIBRATED)
    for line in lines:
        opening.say(f"{route}: {line}")
    return is_there


def latent_shape(bundle: Bundle, request: GenerateRequest) -> tuple[int, int, int, int]:
    """Return `(1, C, h, w)` of a resolved request's latents."""
    assert request.width and request.height, "a resolved request"
    downscale = bundle.spec.autoencoder.downscale
    return 1, bundle.spec.unet.in_channels, request.height // downscale, request.width // downscale


def _rows(plan: StepPlan) -> list[int]:
    """Return how many rows each deep step asks about."""
    return [1 + guided for guided, deep in zip(plan.guided, plan.deep, strict=True) if deep]


def _unet_shapes(bundle: Bundle, rows: int, latents: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a question."""
    unet, limit = bundle.spec.unet, bundle.tokenizers[0].limit
    assert unet.projection_class_embeddings_input_dim and unet.addition_time_embed_dim, "an SDXL-shaped U-Net"
    pooled = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
    return {
        "x_t": (rows, *latents[1:]),
        "timesteps": (rows,),
        "prompt_embeds": (rows, limit, unet.cross_attention_dim),
        "pooled_prompt_embeds": (rows, pooled),
        "time_ids": (rows, 6),
    }
