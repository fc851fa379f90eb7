"""What a training step minimises, as data: one spec an objective, told apart by `kind`.

The losses themselves are in `objectives/`, in files of the same stem.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.distillation import DistillationSpec
from vega_diffusion.specs.optimizer import StrictSpec


class TimestepBiasSpec(StrictSpec):
    """Timesteps that are drawn more often than others: those in [begin, end), `multiplier` times as often.

    Source: the option of that name in diffusers' training script for SDXL.
    """

    begin: NonNegativeInt
    end: PositiveInt
    multiplier: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin >= self.end:
            raise InvalidValue("timestep_bias.begin", self.begin, f"less than end {self.end}", "change one")
        return self


class DenoisingSpec(StrictSpec):
    """Predict the noise (or v, or x0) in latents; text encoders are trained along where the recipe says so.

    `min_snr_gamma` caps the weight of easy timesteps; without it every timestep weighs the same. What the network
    predicts and the noise schedule belong to the model, unless `prediction_type` says otherwise. `noise_offset` adds
    so much of one number a channel to the noise, for darker and brighter pictures (arXiv 2305.08891, section 5.1 cites
    it).
    """

    kind: Literal["denoising"] = "denoising"
    min_snr_gamma: PositiveFloat | None = 5.0
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    noise_offset: NonNegativeFloat = 0.0
    timestep_bias: TimestepBiasSpec | None = None


class AutoencodingSpec(StrictSpec):
    """Reproduce pictures through the autoencoder's latents.

    `l1_weight` and `l2_weight` are on pixels in [-1, 1], `edge_weight` is on differences of neighbouring pixels (keeps
    outlines sharp), `kl_weight` on the divergence of the posterior from a standard normal, per latent number. Fresh
    weights start with a posterior of log variance `initial_logvar`, so that noise does not drown the first signal.
    """

    kind: Literal["autoencoding"] = "autoencoding"
    l1_weight: NonNegativeFloat = 1.0
    l2_weight: NonNegativeFloat = 0.0
    edge_weight: NonNegativeFloat = 0.5
    kl_weight: NonNegativeFloat = 1e-6
    initial_logvar: float = -6.0


class TinyAutoencodingSpec(StrictSpec):
    """Read and write the latents of a full autoencoder by a tiny one.

    Decoded pictures are compared with the full decoder's (`teacher_weight`) and with those that were encoded
    (`picture_weight`), each by `l1_weight`, `l2_weight` and `edge_weight` as in `AutoencodingSpec`; `latent_weight` is
    on the squared error of the encoder's latents, in the U-Net's scale.
    """

    kind: Literal["tiny_autoencoding"] = "tiny_autoencoding"
    teacher_weight: NonNegativeFloat = 1.0
    picture_weight: NonNegativeFloat = 0.25
    l1_weight: NonNegativeFloat = 1.0
    l2_weight: NonNegativeFloat = 2.0
    edge_weight: NonNegativeFloat = 0.25
    latent_weight: NonNegativeFloat = 0.5


class SceneTextSpec(StrictSpec):
    """Predict the exact scene from its caption, so that the text encoders know what the captions mean.

    Small heads on the penultimate and pooled states do it and are thrown away afterwards. `pooled_weight` scales the
    loss of the pooled state's heads against that of the token states' heads, `mention_weight` that of the heads that
    read what the words say of one object from the last token of its name alone.
    """

    kind: Literal["scene_text"] = "scene_text"
    pooled_weight: NonNegativeFloat = 1.0
    mention_weight: NonNegativeFloat = 1.0


class SceneCheckingSpec(StrictSpec):
    """Say what is where in a picture: centres, nouns, colours and boxes of objects, style and background of the whole.

    The weights scale the parts against each other.
    """

    kind: Literal["scene_checking"] = "scene_checking"
    objectness_weight: NonNegativeFloat = 1.0
    noun_weight: NonNegativeFloat = 1.0
    colour_weight: NonNegativeFloat = 0.5
    box_weight: NonNegativeFloat = 0.5
    style_weight: NonNegativeFloat = 0.5
    background_weight: NonNegativeFloat = 0.3


ObjectiveSpec = Annotated[
    DenoisingSpec | DistillationSpec | AutoencodingSpec | TinyAutoencodingSpec | SceneTextSpec | SceneCheckingSpec,
    Field(discriminator="kind"),
]
