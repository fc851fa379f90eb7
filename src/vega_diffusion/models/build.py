"""One entry to the component builders: a model's spec and a component's name give a fresh module."""

from __future__ import annotations

from torch import nn

from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.autoencoder import build_autoencoder, build_tiny_autoencoder
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.tiny_autoencoder import tiny_autoencoder_of


def build_component(spec: ModelSpec, name: str) -> nn.Module:
    """Build a component with fresh weights, on the device and in the dtype that are current.

    Args:
        spec: The model.
        name: `unet`, `vae`, `vae_tiny`, `text_encoder` or, where the model has one, `text_encoder_2`.

    Raises:
        InvalidValue: The model has no such component.
    """
    match name:
        case "unet":
            return build_unet(spec.unet)
        case "vae":
            return build_autoencoder(spec.autoencoder)
        case "vae_tiny":
            return build_tiny_autoencoder(tiny_autoencoder_of(spec))
        case "text_encoder":
            return build_text_encoder(spec.text_encoder)
        case "text_encoder_2" if spec.text_encoder_2 is not None:
            return build_text_encoder(spec.text_encoder_2)
        case _:
            raise InvalidValue("model.train", name, f"a component of {spec.name}", "remove it")
