"""Architectures as data: what a U-Net, text encoders, autoencoder and noise schedule are made of.

Field names are those of the diffusers and transformers config files, so that a spec and a `config.json` say the same
thing in the same words. No network is built here (`models/`), and no known model is listed (`presets.py`).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.base import Spec

DownBlock = Literal["DownBlock2D", "CrossAttnDownBlock2D"]
UpBlock = Literal["UpBlock2D", "CrossAttnUpBlock2D"]
MidBlock = Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"]
# One number for the model, one for each level, or (inner tuple) one for each attention layer of a level.
# Configs in the wild write anything (0, 1) for levels without attention, so zero is allowed.
Depths = NonNegativeInt | tuple[NonNegativeInt | tuple[NonNegativeInt, ...], ...]


def _per_level(value: Any, levels: int) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,) * levels


def _spread(depth: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    return depth if isinstance(depth, tuple) else (depth,) * layers


class UNetSpec(Spec):
    """Everything that builds a diffusers `UNet2DConditionModel`, in the words of its config.

    Levels are counted from the input: level 0 has the full latent resolution. `attention_head_dim` is the *number of
    heads*, as in every published SDXL config (diffusers keeps the misleading name for compatibility).
    `transformer_layers_per_block` follows the down path; the up path uses it reversed unless
    `reverse_transformer_layers_per_block` (written in up-path order) is given, as SSD-1B needs.
    """

    sample_size: PositiveInt = 128
    in_channels: PositiveInt = 4
    out_channels: PositiveInt = 4
    block_out_channels: tuple[PositiveInt, ...] = (320, 640, 1280)
    layers_per_block: PositiveInt | tuple[PositiveInt, ...] = 2
    down_block_types: tuple[DownBlock, ...] = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    mid_block_type: MidBlock | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[UpBlock, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    transformer_layers_per_block: Depths = (1, 2, 10)
    reverse_transformer_layers_per_block: Depths | None = None
    attention_head_dim: PositiveInt | tuple[PositiveInt, ...] = (5, 10, 20)
    cross_attention_dim: PositiveInt = 2048
    use_linear_projection: bool = True
    addition_embed_type: Literal["text_time"] | None = "text_time"
    addition_time_embed_dim: PositiveInt | None = 256
    projection_class_embeddings_input_dim: PositiveInt | None = 2816
    time_cond_proj_dim: PositiveInt | None = None
    act_fn: str = "silu"
    norm_num_groups: PositiveInt = 32
    norm_eps: PositiveFloat = 1e-5
    dropout: NonNegativeFloat = 0.0
    flip_sin_to_cos: bool = True
    freq_shift: NonNegativeInt = 0
    only_cross_attention: bool = False
    upcast_attention: bool = False
    downsample_padding: NonNegativeInt = 1
    mid_block_scale_factor: PositiveFloat = 1.0
    resnet_time_scale_shift: str = "default"
    conv_in_kernel: PositiveInt = 3
    conv_out_kernel: PositiveInt = 3

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.block_out_channels)
        for field in (
            "down_block_types",
            "up_block_types",
            "layers_per_block",
            "transformer_layers_per_block",
            "reverse_transformer_layers_per_block",
            "attention_head_dim",
        ):
            value = getattr(self, field)
            if isinstance(value, tuple) and len(value) != levels:
                raise InvalidValue(f"unet.{field}", value, f"{levels} entries, one a level", "match block_out_channels")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise InvalidValue(
                    "unet.norm_num_groups", self.norm_num_groups, f"a divisor of {self.block_out_channels}", "lower it"
                )
        return self

    @model_validator(mode="after")
    def _depths_are_complete(self) -> Self:
        depths = self.transformer_layers_per_block
        nested = isinstance(depths, tuple) and any(isinstance(level, tuple) for level in depths)
        if nested and self.reverse_transformer_layers_per_block is None:
            raise InvalidValue(
                "unet.reverse_transformer_layers_per_block",
                None,
                "a depth for every level when transformer_layers_per_block is nested",
                "write the up path's depths",
            )
        if self.addition_embed_type == "text_time":
            for field in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if getattr(self, field) is None:
                    raise InvalidValue(f"unet.{field}", None, "a size when addition_embed_type is text_time", "add it")
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the keyword arguments of `UNet2DConditionModel` (lists, as a config file holds them)."""
        return self.model_dump(mode="json")

    @property
    def num_levels(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @property
    def down_depths(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks of each attention layer, level by level on the way down; empty without attention."""
        return tuple(
            _spread(depth, layers) if "CrossAttn" in kind else ()
            for depth, layers, kind in zip(
                _per_level(self.transformer_layers_per_block, self.num_levels),
                _per_level(self.layers_per_block, self.num_levels),
                self.down_block_types,
                strict=True,
            )
        )

    @property
    def mid_depth(self) -> int:
        """Transformer blocks of the mid block; 0 when it has no attention or is absent."""
        if self.mid_block_type != "UNetMidBlock2DCrossAttn":
            return 0
        return _spread(_per_level(self.transformer_layers_per_block, self.num_levels)[-1], 1)[0]

    @property
    def up_depths(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks of each attention layer in the order of `up_blocks`; empty without attention."""
        if self.reverse_transformer_layers_per_block is not None:
            depths = _per_level(self.reverse_transformer_layers_per_block, self.num_levels)
        else:
            depths = _per_level(self.transformer_layers_per_block, self.num_levels)[::-1]
        layers_up = _per_level(self.layers_per_block, self.num_levels)[::-1]
        return tuple(
            _spread(depth, layers + 1) if "CrossAttn" in kind else ()
            for depth, layers, kind in zip(depths, layers_up, self.up_block_types, strict=True)
        )

    def same_network(self, other: UNetSpec) -> bool:
        """Whether the two build the same layers, however depths are spelled (`sample_size`, `dropout` aside)."""
        spelling = {"sample_size", "dropout", "transformer_layers_per_block", "reverse_transformer_layers_per_block"}
        spelling |= {"attention_head_dim", "layers_per_block", "upcast_attention"}

        def shape(spec: UNetSpec) -> tuple[object, ...]:
            heads = _per_level(spec.attention_head_dim, spec.num_levels)
            layers = _per_level(spec.layers_per_block, spec.num_levels)
            return spec.down_depths, spec.mid_depth, spec.up_depths, heads, layers, spec.model_dump(exclude=spelling)

        return shape(self) == shape(other)


class TextEncoderSpec(Spec):
    """A CLIP text encoder; the defaults are OpenAI's CLIP-L, the first encoder of SDXL and the only one of SD-1.5.

    `with_projection` selects `CLIPTextModelWithProjection`, SDXL's second encoder, whose `text_embeds` are the pooled
    condition. `eos_token_id` 2 is the published spelling: transformers then pools at the highest token id, which is
    the end token of every CLIP vocabulary.
    """

    with_projection: bool = False
    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    max_position_embeddings: PositiveInt = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection_dim: PositiveInt = 768
    layer_norm_eps: PositiveFloat = 1e-5
    bos_token_id: NonNegativeInt = 0
    eos_token_id: NonNegativeInt = 2
    pad_token_id: NonNegativeInt = 1

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise InvalidValue(
                "text_encoder.num_attention_heads",
                self.num_attention_heads,
                f"a divisor of hidden_size {self.hidden_size}",
                "change one of them",
            )
        return self

    @property
    def architecture(self) -> str:
        """Name of the transformers class."""
        return "CLIPTextModelWithProjection" if self.with_projection else "CLIPTextModel"

    def to_config(self) -> dict[str, Any]:
        """Return the keyword arguments of `CLIPTextConfig`."""
        return self.model_dump(mode="json", exclude={"with_projection"})


class AutoencoderSpec(Spec):
    """An `AutoencoderKL`; the defaults are SDXL's.

    `scaling_factor` is 1 / std of the latents, measured on data after training. `force_upcast` asks pipelines to
    decode in fp32 even when the rest runs in fp16.
    """

    sample_size: PositiveInt = 1024
    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    latent_channels: PositiveInt = 4
    block_out_channels: tuple[PositiveInt, ...] = (128, 256, 512, 512)
    layers_per_block: PositiveInt = 2
    norm_num_groups: PositiveInt = 32
    act_fn: str = "silu"
    scaling_factor: PositiveFloat = 0.13025
    shift_factor: float | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def downscale(self) -> int:
        """Pixels to one latent cell along a side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_config(self) -> dict[str, Any]:
        """Return the keyword arguments of `AutoencoderKL`."""
        levels = len(self.block_out_channels)
        return self.model_dump(mode="json") | {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }


class NoiseScheduleSpec(Spec):
    """The noise schedule that a model was trained with, and the scheduler class its folder names.

    The defaults are SDXL's: betas run from 0.00085 to 0.012, linear in their square roots, over 1000 timesteps.
    """

    scheduler: str = "EulerDiscreteScheduler"
    num_train_timesteps: PositiveInt = 1000
    beta_start: PositiveFloat = 0.00085
    beta_end: PositiveFloat = 0.012
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear"
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: NonNegativeInt = 1
    rescale_betas_zero_snr: bool = False

    def to_config(self) -> dict[str, Any]:
        """Return the content of `scheduler_config.json`, without its class and version keys."""
        return self.model_dump(mode="json", exclude={"scheduler"}) | {
            "clip_sample": False,
            "interpolation_type": "linear",
            "sample_max_value": 1.0,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "trained_betas": None,
            "use_karras_sigmas": False,
        }


class GenerationDefaults(Spec):
    """What a request gets where it says nothing; it belongs to the model, since models want different guidance.

    `guidance_scale` 1.0 or less means no guidance; sizes are pixels. `negative_prompt` None is "none given" (zeros
    where `force_zeros_for_empty_prompt`), which differs from the encoded empty text "".
    """

    guidance_scale: NonNegativeFloat = 5.0
    negative_prompt: str | None = None
    num_steps: PositiveInt = 25
    sampler: str = "euler"
    width: PositiveInt = 1024
    height: PositiveInt = 1024


class ModelSpec(Spec):
    """One text-to-image model, complete.

    `force_zeros_for_empty_prompt` is SDXL's rule that a *missing* negative prompt is conditioned on zeros instead of
    on the encoded empty string; it is written to `model_index.json`.
    """

    name: str
    family: Literal["sdxl", "sd-1", "mini"]
    unet: UNetSpec
    text_encoder: TextEncoderSpec = TextEncoderSpec()
    text_encoder_2: TextEncoderSpec | None = None
    autoencoder: AutoencoderSpec = AutoencoderSpec()
    schedule: NoiseScheduleSpec = NoiseScheduleSpec()
    generation: GenerationDefaults = GenerationDefaults()
    force_zeros_for_empty_prompt: bool = True

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        width = self.text_encoder.hidden_size + (self.text_encoder_2.hidden_size if self.text_encoder_2 else 0)
        if self.unet.cross_attention_dim != width:
            raise InvalidValue(
                "unet.cross_attention_dim",
                self.unet.cross_attention_dim,
                f"{width}, the text encoders' hidden sizes together",
                "change one of them",
            )
        if self.is_sdxl_shaped and self.unet.projection_class_embeddings_input_dim != self.added_embedding_size:
            raise InvalidValue(
                "unet.projection_class_embeddings_input_dim",
                self.unet.projection_class_embeddings_input_dim,
                f"{self.added_embedding_size}, the pooled size plus six times addition_time_embed_dim",
                "change one of them",
            )
        return self

    @property
    def is_sdxl_shaped(self) -> bool:
        """Whether the model has two text encoders and SDXL's size and crop conditioning."""
        return self.text_encoder_2 is not None and self.unet.addition_embed_type == "text_time"

    @property
    def added_embedding_size(self) -> int:
        """Width of the added condition: pooled text plus six embedded size and crop numbers (SDXL, section 2.2)."""
        pooled = self.text_encoder_2.projection_dim if self.text_encoder_2 else 0
        return pooled + 6 * (self.unet.addition_time_embed_dim or 0)
