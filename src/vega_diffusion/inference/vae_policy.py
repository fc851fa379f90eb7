"""Which autoencoder decodes what: the tiny one for previews and drafts, the full one for finals, in tiles where large.

Decoding itself, with its guard against numbers that overflow, is `pictures.decode_latents`; there is no other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from vega_diffusion.inference.components import Components
from vega_diffusion.inference.lines import no_tiny_decoder
from vega_diffusion.inference.pictures import decode_latents
from vega_diffusion.inference.rules import tile_px_for
from vega_diffusion.specs.profile import Decoder
from vega_diffusion.specs.request import GenerateRequest

Purpose = Literal["preview", "draft", "final"]

DECODERS: dict[Purpose, Decoder] = {"preview": "tiny", "draft": "tiny", "final": "full"}


class Autoencoders(Protocol):
    """Where a model's autoencoders come from: its components in torch, or another backend's parts."""

    @property
    def name(self) -> str:
        """The model's."""
        ...

    def vae(self) -> Any:
        """Return the full one."""
        ...

    def tiny_vae(self, reference: str | None = None) -> Any | None:
        """Return the tiny one that a reference names, else the model's own, else None."""
        ...


@dataclass(frozen=True)
class ChosenVae:
    """The autoencoder for one purpose.

    Attributes:
        vae: A diffusers `AutoencoderKL` or `AutoencoderTiny`.
        decoder: Which of the two it is, for the record.
        warnings: Lines the user should see: a draft that the model has no tiny autoencoder for.
    """

    vae: Any
    decoder: Decoder
    warnings: tuple[str, ...] = ()

    def decode(self, latents: Tensor, tile_px: int | None = None) -> tuple[Tensor, tuple[str, ...]]:
        """Decode latents `[1, C, h, w]` of the U-Net to an image `[1, 3, H, W]` in about -1..1, with all warnings.

        Raises:
            VegaError: The latents, or the image even in float32, are not finite.
        """
        image, warnings = decode_latents(self.vae, latents, tile_px)
        return image, self.warnings + warnings


def choose_vae(
    components: Autoencoders, purpose: Purpose, decoder: Decoder | None = None, tiny: str | None = None
) -> ChosenVae:
    """Return the autoencoder that serves a purpose.

    Where a model has no tiny autoencoder the full one takes its place: without a word for previews, which are small,
    with a warning for what was to be fast.

    Args:
        components: The model's parts.
        purpose: What the picture is for.
        decoder: What a profile or a request says instead of the rule.
        tiny: Which tiny autoencoder: a folder such as `taesdxl`, a model that has one; None takes the model's own.

    Raises:
        VegaError: What `tiny` names is not there or does not fit.
    """
    wanted = decoder or DECODERS[purpose]
    if wanted == "full":
        return ChosenVae(components.vae(), "full")
    found = components.tiny_vae(tiny)
    if found is not None:
        return ChosenVae(found, "tiny")
    said = () if purpose == "preview" else (no_tiny_decoder(components.name),)
    return ChosenVae(components.vae(), "full", said)


def planned_tile_px(components: Components, request: GenerateRequest, decoder: Decoder) -> int | None:
    """Return the side of the tiles that a resolved request's picture is decoded in, in px; None decodes it at once."""
    assert request.width and request.height, "a resolved request"
    is_short = components.low_memory or request.drawn_by.is_small
    # Only what is exactly diffusers' is decoded whole at any size, for as long as there is memory.
    if (request.profile or "exact") == "exact" and not is_short:
        return None
    return tile_px_for(request.width, request.height, decoder, is_short)


def decoder_there(components: Components, decoder: Decoder | None) -> Decoder:
    """Return which autoencoder would decode finals, where a profile or a request asks for one; loads nothing."""
    wanted = decoder or DECODERS["final"]
    return wanted if wanted == "full" or components.tiny_digest() is not None else "full"
