"""Which autoencoder decodes what: the tiny one for previews and drafts, the full one for finals, in tiles where large.

Decoding itself, with its guard against numbers that overflow, is `pictures.decode_latents`; there is no other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vega_diffusion.inference.components import Components
from vega_diffusion.inference.pictures import decode_latents
from vega_diffusion.specs.profile import Decoder

Purpose = Literal["preview", "draft", "final"]

DECODERS: dict[Purpose, Decoder] = {"preview": "tiny", "draft": "tiny", "final": "full"}
# At the pixels' side SDXL's decoder holds about three maps of 256 channels, by count of its layers: 3 GiB in fp32 at
# 1024 x 1024. A rule by size, not by what memory is free at the moment, keeps a picture the same on every machine.
WHOLE_PIXELS = 1280 * 1280
WHOLE_PIXELS_LOW_MEMORY = 768 * 768
TILE_PX = 512


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


def load_tiny(components: Components, reference: str | None = None) -> Any | None:
    """Return the tiny autoencoder that a reference names, else the model's own, else None.

    Raises:
        VegaError: What the reference names is not there, damaged, or made for other latents.
    """
    return components.tiny_vae(reference)


def choose_vae(
    components: Components, purpose: Purpose, decoder: Decoder | None = None, tiny: str | None = None
) -> ChosenVae:
    """Return the autoencoder that serves a purpose.

    Where a model has no tiny autoencoder the full one takes its place: without a word for previews, which are small,
    with a warning for what was to be fast.

    Args:
        components: The model.
        purpose: What the picture is for.
        decoder: What a profile or a request says instead of the rule.
        tiny: Which tiny autoencoder, as `load_tiny` has it.

    Raises:
        VegaError: What `tiny` names is not there or does not fit.
    """
    wanted = decoder or DECODERS[purpose]
    if wanted == "full":
        return ChosenVae(components.vae(), "full")
    found = load_tiny(components, tiny)
    if found is not None:
        return ChosenVae(found, "tiny")
    said = f"{components.name} has no tiny autoencoder (vae_tiny); decoded by the full one"
    return ChosenVae(components.vae(), "full", () if purpose == "preview" else (said,))


def tile_px_for(width: int, height: int, decoder: Decoder = "full", low_memory: bool = False) -> int | None:
    """Return the side of the tiles that a picture of this size is decoded in, in px; None decodes it at once.

    The tiny autoencoder never needs tiles. A picture in tiles equals one decoded at once but for slight differences in
    tone, so the rule depends on nothing but its arguments.

    Args:
        width: Of the picture, in px.
        height: Of the picture, in px.
        decoder: Which autoencoder.
        low_memory: Whether memory is short: tiles begin at smaller pictures.
    """
    if decoder == "tiny":
        return None
    whole = WHOLE_PIXELS_LOW_MEMORY if low_memory else WHOLE_PIXELS
    return TILE_PX if width * height > whole else None
