"""Tiny autoencoders as data: small networks that read and write the latents of a full one.

Field names are those of diffusers' `AutoencoderTiny` configs. The full autoencoder is `AutoencoderSpec` in
`architecture.py`; no network is built here (`models/autoencoder.py`).
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.base import Spec


class TinyAutoencoderSpec(Spec):
    """An `AutoencoderTiny`; the defaults are those of TAESD and TAESDXL: 2,445,063 parameters, 1,222,531 to decode.

    Its latents are those that a U-Net sees, already multiplied by the full autoencoder's scaling factor; hence its own
    `scaling_factor` is 1. Levels of the encoder are counted from the pixels, levels of the decoder from the latents.
    The layout joins levels by convolutions that keep the width, so that all levels of a side are equally wide.
    `latent_magnitude` and `latent_shift` are about latents stored as bytes, which nothing here does.

    Source: Ollin Boer Bohan, TAESD (madebyollin/taesd, madebyollin/taesdxl on the Hub).
    """

    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    latent_channels: PositiveInt = 4
    encoder_block_out_channels: tuple[PositiveInt, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[PositiveInt, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[NonNegativeInt, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[NonNegativeInt, ...] = (3, 3, 3, 1)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    upsampling_scaling_factor: PositiveInt = 2
    latent_magnitude: PositiveInt = 3
    latent_shift: float = 0.5
    scaling_factor: PositiveFloat = 1.0
    shift_factor: float = 0.0
    force_upcast: bool = False

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        levels = len(self.decoder_block_out_channels)
        for side in ("encoder", "decoder"):
            field = f"{side}_block_out_channels"
            widths = getattr(self, field)
            blocks = getattr(self, f"num_{side}_blocks")
            if len(widths) != levels:
                raise InvalidValue(f"vae_tiny.{field}", widths, f"{levels} entries, as the decoder has", "change one")
            if len(blocks) != levels:
                raise InvalidValue(f"vae_tiny.num_{side}_blocks", blocks, f"{levels} entries, one a level", "change it")
            if len(set(widths)) != 1:
                raise InvalidValue(f"vae_tiny.{field}", widths, "one width for all levels", "repeat the first")
        if self.upsampling_scaling_factor != 2:
            given = self.upsampling_scaling_factor
            raise InvalidValue("vae_tiny.upsampling_scaling_factor", given, "2, as the encoder halves", "set it to 2")
        return self

    @property
    def downscale(self) -> int:
        """Pixels to one latent cell along a side."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)

    def to_config(self) -> dict[str, Any]:
        """Return the keyword arguments of `AutoencoderTiny` (lists, as a config file holds them)."""
        return self.model_dump(mode="json")


# TAESD (Stable Diffusion 1) and TAESDXL (SDXL) are one shape with different weights.
TAESD = TinyAutoencoderSpec()
# Every level at the latents' side is cheap and none at the pixels' side: decoding is a tenth of the full one's work.
MINI_TINY = TinyAutoencoderSpec(
    encoder_block_out_channels=(16, 16, 16, 16),
    decoder_block_out_channels=(16, 16, 16, 16),
    num_encoder_blocks=(0, 2, 3, 3),
    num_decoder_blocks=(3, 3, 2, 0),
)


def tiny_autoencoder_of(spec: ModelSpec) -> TinyAutoencoderSpec:
    """Return the tiny autoencoder that goes with a model: TAESD's shape, or the mini family's own."""
    shape = MINI_TINY if spec.family == "mini" else TAESD
    return shape.model_copy(update={"latent_channels": spec.autoencoder.latent_channels})
