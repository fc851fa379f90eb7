"""U-Nets from specs. Weights come from `checkpoint`, students from teachers elsewhere; nothing here reads files."""

from __future__ import annotations

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from vega_diffusion.specs.architecture import UNetSpec


def build_unet(spec: UNetSpec) -> UNet2DConditionModel:
    """Build the network with fresh weights, on the device and in the dtype that are current.

    Under `torch.device("meta")` nothing is allocated, which is how sizes are measured. On a real device the weights
    depend on torch's global generator: seed it first for a reproducible start.

    Args:
        spec: The architecture.

    Returns:
        A diffusers `UNet2DConditionModel` whose config equals the spec.
    """
    return UNet2DConditionModel(**spec.to_config())
