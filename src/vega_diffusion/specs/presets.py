"""The models known by name. A preset states architecture and generation defaults; weights are found in `models/`.

Sizes of the U-Nets (parameters, checked in tests): sdxl 2,567,463,684; ssd-1b 1,331,334,404; vega 745,225,604;
koala-1b 1,161,184,324; koala-700m 782,822,724; sd-1.5 859,520,964.
"""

from __future__ import annotations

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import (
    AutoencoderSpec,
    GenerationDefaults,
    ModelSpec,
    NoiseScheduleSpec,
    TextEncoderSpec,
    UNetSpec,
)

# The card of Segmind-Vega asks for a negative prompt and guidance around 9.0; this is the one it shows.
VEGA_NEGATIVE_PROMPT = "(worst quality, low quality, illustration, 3d, 2d, painting, cartoons, sketch)"
# Likewise those on the cards of SSD-1B and KOALA; KOALA's names no guidance scale, so SDXL's stands.
SSD_NEGATIVE_PROMPT = "ugly, blurry, poor quality"
KOALA_NEGATIVE_PROMPT = "worst quality, low quality, illustration, low resolution"

_CLIP_L = TextEncoderSpec()
_OPENCLIP_BIGG = TextEncoderSpec(
    with_projection=True,
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
)


def _sdxl_like(name: str, unet: UNetSpec, generation: GenerationDefaults) -> ModelSpec:
    return ModelSpec(
        name=name,
        family="sdxl",
        unet=unet,
        text_encoder=_CLIP_L,
        text_encoder_2=_OPENCLIP_BIGG,
        generation=generation,
    )


SDXL = _sdxl_like("sdxl", UNetSpec(), GenerationDefaults())

SSD_1B = _sdxl_like(
    "ssd-1b",
    UNetSpec(
        mid_block_type="UNetMidBlock2D",
        transformer_layers_per_block=(1, (2, 2), (4, 4)),
        reverse_transformer_layers_per_block=((4, 4, 10), (2, 1, 1), 1),
    ),
    GenerationDefaults(guidance_scale=9.0, negative_prompt=SSD_NEGATIVE_PROMPT),
)

VEGA = _sdxl_like(
    "vega",
    UNetSpec(mid_block_type="UNetMidBlock2D", transformer_layers_per_block=(1, 1, 2)),
    GenerationDefaults(guidance_scale=9.0, negative_prompt=VEGA_NEGATIVE_PROMPT),
)

KOALA_1B = _sdxl_like(
    "koala-1b",
    UNetSpec(layers_per_block=1, transformer_layers_per_block=(1, 2, 6)),
    GenerationDefaults(negative_prompt=KOALA_NEGATIVE_PROMPT),
)

KOALA_700M = _sdxl_like(
    "koala-700m",
    UNetSpec(layers_per_block=1, transformer_layers_per_block=(1, 2, 5), mid_block_type=None),
    GenerationDefaults(negative_prompt=KOALA_NEGATIVE_PROMPT),
)

SD_1_5 = ModelSpec(
    name="sd-1.5",
    family="sd-1",
    unet=UNetSpec(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        transformer_layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=768,
        use_linear_projection=False,
        addition_embed_type=None,
        addition_time_embed_dim=None,
        projection_class_embeddings_input_dim=None,
    ),
    autoencoder=AutoencoderSpec(sample_size=512, scaling_factor=0.18215),
    schedule=NoiseScheduleSpec(scheduler="PNDMScheduler"),
    generation=GenerationDefaults(guidance_scale=7.5, width=512, height=512),
    force_zeros_for_empty_prompt=False,
)


def _mini(name: str, unet: UNetSpec) -> ModelSpec:
    """Wrap a U-Net in the mini family's shared text encoders and autoencoder (128 px pictures, 16x16 latents).

    "<|startoftext|>" and "<|endoftext|>" are the last two of the family's own 4096 tokens; as in SDXL, the first
    tokenizer pads with the end token and the second with token 0.
    """
    return ModelSpec(
        name=name,
        family="mini",
        unet=unet,
        text_encoder=TextEncoderSpec(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=2,
            projection_dim=64,
            vocab_size=4096,
            bos_token_id=4094,
            eos_token_id=4095,
            pad_token_id=4095,
        ),
        text_encoder_2=TextEncoderSpec(
            with_projection=True,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            hidden_act="gelu",
            projection_dim=128,
            vocab_size=4096,
            bos_token_id=4094,
            eos_token_id=4095,
            pad_token_id=0,
        ),
        autoencoder=AutoencoderSpec(
            sample_size=128,
            block_out_channels=(16, 32, 64, 128),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=1.0,
        ),
        generation=GenerationDefaults(guidance_scale=5.0, width=128, height=128),
    )


_MINI_UNET = UNetSpec(
    sample_size=16,
    block_out_channels=(32, 64, 128),
    attention_head_dim=(1, 2, 4),
    norm_num_groups=4,
    cross_attention_dim=192,
    addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=320,
)

MINI_SDXL = _mini("mini-sdxl", _MINI_UNET)


def _mini_of(name: str, full: ModelSpec) -> ModelSpec:
    """Return the mini family's model with the blocks of a full-size one."""
    fields = ("mid_block_type", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
    return _mini(name, _MINI_UNET.model_copy(update={field: getattr(full.unet, field) for field in fields}))


# Guidance: 3.5, 4.25, 5 and 7.5 give 84.6, 85.4, 83.8 and 78.8 of 100 on scenes-dev (docs/log.md).
VEGA_MINI = _mini_of("vega-mini", VEGA).model_copy(
    update={"generation": GenerationDefaults(guidance_scale=4.25, width=128, height=128)}
)
SSD_MINI = _mini_of("ssd-mini", SSD_1B)

PRESETS: dict[str, ModelSpec] = {
    spec.name: spec for spec in (SDXL, SSD_1B, VEGA, KOALA_1B, KOALA_700M, SD_1_5, MINI_SDXL, SSD_MINI, VEGA_MINI)
}


def preset(name: str) -> ModelSpec:
    """Return the preset of that name.

    Raises:
        InvalidValue: There is no preset of that name.
    """
    if name not in PRESETS:
        raise InvalidValue("model", name, f"one of: {', '.join(PRESETS)}", "choose a known name")
    return PRESETS[name]
