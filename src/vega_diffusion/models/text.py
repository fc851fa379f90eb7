"""CLIP text encoders from specs. Prompts are encoded in `inference`; tokenizer files are written in `checkpoint`."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from vega_diffusion.specs.architecture import TextEncoderSpec

TextEncoder = CLIPTextModel | CLIPTextModelWithProjection


def build_text_encoder(spec: TextEncoderSpec) -> TextEncoder:
    """Build the text encoder with fresh weights, on the device and in the dtype that are current.

    Args:
        spec: The architecture; `with_projection` chooses the class.

    Returns:
        A transformers model in evaluation mode; token ids `[B, 77]` become hidden states `[B, 77, hidden_size]`.
    """
    config = CLIPTextConfig(**spec.to_config())
    model = CLIPTextModelWithProjection(config) if spec.with_projection else CLIPTextModel(config)
    return model.eval()
