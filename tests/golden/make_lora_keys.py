"""Makes `lora-keys-*.tsv` out of diffusers' own converter, without a line of this package's LoRA code.

Every name that kohya's layout could have is put to diffusers' loader of kohya files; those that come out as a map of
the stock `UNet2DConditionModel` are kept. Run by hand: python tests/golden/make_lora_keys.py
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from vega_diffusion.specs.presets import SDXL, VEGA

ATTENTION = [f"attn{number}_to_{part}" for number in (1, 2) for part in ("q", "k", "v", "out_0")]
IN_BLOCK = [
    f"transformer_blocks_{depth}_{rest}" for depth in range(12) for rest in (*ATTENTION, "ff_net_0_proj", "ff_net_2")
]
LAYERS = [
    "proj_in",
    "proj_out",
    "in_layers_2",
    "emb_layers_1",
    "out_layers_3",
    "skip_connection",
    "op",
    "conv",
    *IN_BLOCK,
]
SINGLE = ["input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2"]


def candidates() -> list[str]:
    """Every name of a map that kohya's layout could have."""
    blocks = [
        f"{side}_{number}_{place}"
        for side in ("input_blocks", "output_blocks")
        for number, place in product(range(12), range(3))
    ]
    blocks += [f"middle_block_{number}" for number in range(3)]
    return SINGLE + [f"{block}_{layer}" for block, layer in product(blocks, LAYERS)]


def diffusers_path(name: str, config: SimpleNamespace) -> str | None:
    """What diffusers makes of a kohya name; None where it refuses it."""
    one = torch.zeros(1, 1)
    state = {f"lora_unet_{name}.lora_{part}.weight": one for part in ("down", "up")}
    try:
        mapped, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(state, config))
    except (ValueError, KeyError, IndexError):
        return None
    keys = [key.replace(".processor", "") for key in convert_unet_state_dict_to_peft(mapped)]
    return next(key for key in keys if "lora_A" in key).removeprefix("unet.").removesuffix(".lora_A.weight")


def unet_rows(spec: object) -> list[tuple[str, str]]:
    """(kohya's name, diffusers' name) of every map of a U-Net."""
    settings = spec.unet.to_config()  # type: ignore[attr-defined]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
    maps = {name for name, one in unet.named_modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)}
    config = SimpleNamespace(layers_per_block=settings["layers_per_block"])
    found: dict[str, str] = {}
    for name in candidates():
        path = diffusers_path(name, config)
        if path is None or path not in maps:
            continue
        # diffusers takes any block of a level for its change of resolution, and any place; it is the last block's.
        resampler = "samplers." in path
        if resampler and not name.endswith(("_0_op", "_2_conv")):
            continue
        assert path not in found or resampler, (path, name, found[path])
        found[path] = f"lora_unet_{name}"
    assert set(found) == maps, sorted(maps - set(found))
    return [(found[path], f"unet.{path}") for path in sorted(maps)]


def text_rows(spec: object) -> list[tuple[str, str]]:
    """Likewise for the text encoders, whose maps keep `text_model.` in files whatever transformers calls them."""
    rows = []
    kinds = (("text_encoder", "te1", CLIPTextModel), ("text_encoder_2", "te2", CLIPTextModelWithProjection))
    for component, prefix, kind in kinds:
        with torch.device("meta"):
            encoder = kind(CLIPTextConfig(**getattr(spec, component).to_config()))
        for name, one in encoder.named_modules():
            if isinstance(one, torch.nn.Linear):
                path = name if name == "text_projection" else f"text_model.{name.removeprefix('text_model.')}"
                rows.append((f"lora_{prefix}_{path.replace('.', '_')}", f"{component}.{path}"))
    return sorted(rows, key=lambda row: row[1])


if __name__ == "__main__":
    assert StableDiffusionXLLoraLoaderMixin.unet_name == "unet"
    for label, spec in (("sdxl", SDXL), ("vega", VEGA)):
        lines = [f"{kohya}\t{path}\n" for kohya, path in unet_rows(spec) + text_rows(spec)]
        Path(__file__).with_name(f"lora-keys-{label}.tsv").write_text("".join(lines))
