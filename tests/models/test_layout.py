"""The published layout: key manifests of all components, file names, and how files are chosen.

The manifests are written out here from the naming scheme of the SDXL folders on the Hub, not from our code. Their
lengths are those of the real checkpoints: 1680 (SDXL), 944 (SSD-1B) and 564 (Vega) U-Net tensors, 196 and 517 for the
text encoders, 248 for the autoencoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vega_diffusion.errors import MissingFile, UnreadableModel
from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.layout import (
    WEIGHT_STEMS,
    check_folder,
    find_weights,
    from_published_key,
    read_json,
    to_published_key,
)
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import preset


def both(name: str) -> Iterator[str]:
    yield from (f"{name}.weight", f"{name}.bias")


def text_keys(layers: int, projected: bool) -> Iterator[str]:
    yield "text_model.embeddings.position_embedding.weight"
    yield "text_model.embeddings.token_embedding.weight"
    for layer in range(layers):
        home = f"text_model.encoder.layers.{layer}"
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            yield from both(f"{home}.{part}")
        for part in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
            yield from both(f"{home}.{part}")
    yield from both("text_model.final_layer_norm")
    if projected:
        yield "text_projection.weight"


def resnet_keys(home: str, with_time: bool, shortcut: bool) -> Iterator[str]:
    parts = ["norm1", "conv1", "norm2", "conv2"] + ["time_emb_proj"] * with_time + ["conv_shortcut"] * shortcut
    for part in parts:
        yield from both(f"{home}.{part}")


def transformer_keys(home: str, depth: int) -> Iterator[str]:
    for part in ("norm", "proj_in", "proj_out"):
        yield from both(f"{home}.{part}")
    for block in range(depth):
        inner = f"{home}.transformer_blocks.{block}"
        for part in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"):
            yield from both(f"{inner}.{part}")
        for attention in ("attn1", "attn2"):
            yield from (f"{inner}.{attention}.{name}.weight" for name in ("to_q", "to_k", "to_v"))
            yield from both(f"{inner}.{attention}.to_out.0")


def unet_keys(
    down: Sequence[Sequence[int]], mid: int | None, up: Sequence[Sequence[int]], channels: Sequence[int]
) -> Iterator[str]:
    """`mid` is the depth of a cross-attention mid block, 0 for one ResNet block, None for none."""
    for name in ("conv_in", "conv_norm_out", "conv_out"):
        yield from both(name)
    for name in ("time_embedding", "add_embedding"):
        yield from both(f"{name}.linear_1")
        yield from both(f"{name}.linear_2")
    last = len(channels) - 1
    for level in range(len(channels)):
        for layer in range(2):
            widens = layer == 0 and level > 0 and channels[level] != channels[level - 1]
            yield from resnet_keys(f"down_blocks.{level}.resnets.{layer}", True, widens)
            for depth in down[level][layer : layer + 1]:
                yield from transformer_keys(f"down_blocks.{level}.attentions.{layer}", depth)
        if level < last:
            yield from both(f"down_blocks.{level}.downsamplers.0.conv")
        for layer in range(3):
            yield from resnet_keys(f"up_blocks.{level}.resnets.{layer}", True, True)
            for depth in up[level][layer : layer + 1]:
                yield from transformer_keys(f"up_blocks.{level}.attentions.{layer}", depth)
        if level < last:
            yield from both(f"up_blocks.{level}.upsamplers.0.conv")
    if mid is not None:
        yield from resnet_keys("mid_block.resnets.0", True, False)
    if mid:
        yield from transformer_keys("mid_block.attentions.0", mid)
        yield from resnet_keys("mid_block.resnets.1", True, False)


def vae_keys(channels: Sequence[int], layers: int) -> Iterator[str]:
    yield from both("quant_conv")
    yield from both("post_quant_conv")
    last = len(channels) - 1
    for side, blocks, count, widths in (
        ("encoder", "down_blocks", layers, channels),
        ("decoder", "up_blocks", layers + 1, channels[::-1]),
    ):
        for name in ("conv_in", "conv_norm_out", "conv_out"):
            yield from both(f"{side}.{name}")
        for level in range(len(channels)):
            for layer in range(count):
                changes = layer == 0 and level > 0 and widths[level] != widths[level - 1]
                yield from resnet_keys(f"{side}.{blocks}.{level}.resnets.{layer}", False, changes)
            if level < last:
                sampler = "downsamplers" if side == "encoder" else "upsamplers"
                yield from both(f"{side}.{blocks}.{level}.{sampler}.0.conv")
        for layer in range(2):
            yield from resnet_keys(f"{side}.mid_block.resnets.{layer}", False, False)
        for name in ("group_norm", "to_q", "to_k", "to_v", "to_out.0"):
            yield from both(f"{side}.mid_block.attentions.0.{name}")


VEGA_DEPTHS = ([[], [1, 1], [2, 2]], 0, [[2, 2, 2], [1, 1, 1], []])
SSD_DEPTHS = ([[], [2, 2], [4, 4]], 0, [[4, 4, 10], [2, 1, 1], []])
SDXL_DEPTHS = ([[], [2, 2], [10, 10]], 10, [[10] * 3, [2] * 3, []])


@pytest.mark.parametrize(
    ("name", "depths", "count"), [("vega", VEGA_DEPTHS, 564), ("ssd-1b", SSD_DEPTHS, 944), ("sdxl", SDXL_DEPTHS, 1680)]
)
def test_unet_keys_are_the_published_ones(name: str, depths: tuple, count: int) -> None:
    with torch.device("meta"):
        unet = build_unet(preset(name).unet)
    wanted = set(unet_keys(*depths, channels=(320, 640, 1280)))
    assert len(wanted) == count
    assert {to_published_key("unet", key) for key in unet.state_dict()} == wanted


def test_keys_of_the_other_full_size_components() -> None:
    vega = preset("vega")
    assert vega.text_encoder_2 is not None
    with torch.device("meta"):
        first, second = build_text_encoder(vega.text_encoder), build_text_encoder(vega.text_encoder_2)
        autoencoder = build_autoencoder(vega.autoencoder)
    for component, module, wanted, count in (
        ("text_encoder", first, set(text_keys(12, False)), 196),
        ("text_encoder_2", second, set(text_keys(32, True)), 517),
        ("vae", autoencoder, set(vae_keys((128, 256, 512, 512), 2)), 248),
    ):
        assert len(wanted) == count
        assert {to_published_key(component, key) for key in module.state_dict()} == wanted


@pytest.mark.parametrize("precision", ["", ".fp16"])
def test_every_file_of_a_written_folder_has_the_published_keys(
    tiny_folder: Path, tiny_spec: ModelSpec, precision: str
) -> None:
    wanted = {
        "text_encoder": set(text_keys(2, False)),
        "text_encoder_2": set(text_keys(2, True)),
        "unet": set(unet_keys(*VEGA_DEPTHS, channels=tiny_spec.unet.block_out_channels)),
        "vae": set(vae_keys(tiny_spec.autoencoder.block_out_channels, 1)),
    }
    assert wanted.keys() == WEIGHT_STEMS.keys()
    for component, keys in wanted.items():
        with safe_open(tiny_folder / component / f"{WEIGHT_STEMS[component]}{precision}.safetensors", "pt") as file:
            assert set(file.keys()) == keys
            dtypes = {file.get_tensor(key).dtype for key in keys}
            assert file.metadata() == {"format": "pt"}
        assert dtypes == {torch.float16 if precision else torch.float32}


def test_the_folder_holds_exactly_the_published_files_and_ours(tiny_folder: Path) -> None:
    tokenizer = {"vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"}
    diffusers = {f"diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16")} | {"config.json"}
    text = {f"model{variant}.safetensors" for variant in ("", ".fp16")} | {"config.json"}
    wanted = {"model_index.json", "vega.json", "README.md", "scheduler/scheduler_config.json"}
    for home, names in (("tokenizer", tokenizer), ("unet", diffusers), ("vae", diffusers), ("text_encoder", text)):
        wanted |= {f"{home}/{name}" for name in names}
    wanted |= {f"tokenizer_2/{name}" for name in tokenizer} | {f"text_encoder_2/{name}" for name in text}
    assert {str(path.relative_to(tiny_folder)) for path in tiny_folder.rglob("*") if path.is_file()} == wanted


def test_files_are_readable_by_everyone_who_may_read_the_configs(tiny_folder: Path) -> None:
    modes = {path.stat().st_mode for path in tiny_folder.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_index_and_tokenizer_settings_are_stock(tiny_folder: Path) -> None:
    index = read_json(tiny_folder / "model_index.json")
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert index["force_zeros_for_empty_prompt"] is True
    for component, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        config = read_json(tiny_folder / component / "tokenizer_config.json")
        assert (config["model_max_length"], config["pad_token"]) == (77, pad)
    assert read_json(tiny_folder / "text_encoder/config.json")["architectures"] == ["CLIPTextModel"]
    assert read_json(tiny_folder / "text_encoder_2/config.json")["architectures"] == ["CLIPTextModelWithProjection"]
    assert read_json(tiny_folder / "vae/config.json")["force_upcast"] is True


@pytest.mark.parametrize("component", WEIGHT_STEMS)
def test_key_translation_has_an_inverse(component: str, tiny_folder: Path) -> None:
    with safe_open(find_weights(tiny_folder, component).paths[0], "pt") as file:
        keys = list(file.keys())
    translated = [from_published_key(component, key) for key in keys]
    assert [to_published_key(component, key) for key in translated if key is not None] == keys


def test_old_names_in_files_of_others() -> None:
    assert from_published_key("text_encoder", "text_model.embeddings.position_ids") is None
    assert from_published_key("text_encoder_2", "text_model.embeddings.position_ids") is None
    old = "decoder.mid_block.attentions.0.proj_attn.weight"
    assert from_published_key("vae", old) == "decoder.mid_block.attentions.0.to_out.0.weight"
    # Our own names for a text encoder without the prefix, as transformers 5 saves it, are understood too.
    assert from_published_key("text_encoder", "final_layer_norm.bias") == "final_layer_norm.bias"


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(None, "fp32"), (torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "fp16")],
)
def test_the_precision_nearest_to_the_dtype_is_chosen(tiny_folder: Path, dtype: torch.dtype, precision: str) -> None:
    assert find_weights(tiny_folder, "unet", dtype).precision == precision
    (tiny_folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert find_weights(tiny_folder, "unet", dtype).precision == "fp16"


def test_a_missing_shard_is_named(tiny_folder: Path) -> None:
    for path in (tiny_folder / "unet").glob("*.safetensors"):
        path.unlink()
    index = tiny_folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "part-1.safetensors"}}))
    with pytest.raises(UnreadableModel, match=r"part-1\.safetensors"):
        find_weights(tiny_folder, "unet")
    index.write_text("{}")
    with pytest.raises(UnreadableModel, match="weight_map"):
        find_weights(tiny_folder, "unet")


COMPONENTS = {
    "scheduler": "scheduler_config.json",
    "tokenizer": "vocab.json",
    "tokenizer_2": "merges.txt",
    "text_encoder": "config.json",
    "text_encoder_2": "config.json",
    "unet": "config.json",
    "vae": "config.json",
}


@pytest.mark.parametrize(("component", "name"), COMPONENTS.items())
def test_a_missing_component_is_named(tiny_folder: Path, component: str, name: str) -> None:
    check_folder(tiny_folder)
    (tiny_folder / component / name).unlink()
    with pytest.raises(UnreadableModel, match=f"component {component} is missing") as caught:
        check_folder(tiny_folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("component", WEIGHT_STEMS)
def test_missing_weights_are_named(tiny_folder: Path, component: str) -> None:
    for path in (tiny_folder / component).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UnreadableModel, match=f"component {component} has no weights"):
        check_folder(tiny_folder)


def test_a_model_of_another_shape_is_refused(tiny_folder: Path) -> None:
    index = read_json(tiny_folder / "model_index.json")
    del index["text_encoder_2"]
    index["_class_name"] = "StableDiffusionPipeline"
    (tiny_folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableModel, match="StableDiffusionPipeline without text_encoder_2 is not SDXL-shaped"):
        check_folder(tiny_folder)


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="does not exist"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(MissingFile, match=r"holds no model_index\.json"):
        check_folder(tmp_path)
    (tmp_path / "model_index.json").write_text("{ not json")
    with pytest.raises(UnreadableModel, match="not valid JSON"):
        check_folder(tmp_path)
    (tmp_path / "model_index.json").write_text("[1]")
    with pytest.raises(UnreadableModel, match="no JSON object"):
        check_folder(tmp_path)
