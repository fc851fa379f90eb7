"""LoRA files: what is written comes back bit for bit, old spellings are read, other things are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tiny_lora import adapter
from vega_diffusion.errors import MissingFile, UnreadableModel, VegaError
from vega_diffusion.models.lora_file import Adapter, LoraFile, lora_path, read_lora, write_lora

KOHYA, DIFFUSERS = "lora_unet_input_blocks_4_1_proj_in", "unet.down_blocks.1.attentions.0.proj_in"


def same(first: Adapter, second: Adapter) -> bool:
    """Whether two adapters are equal bit for bit, alphas included."""
    pairs = [(first.down, second.down), (first.up, second.up)]
    if first.magnitude is not None and second.magnitude is not None:
        pairs.append((first.magnitude, second.magnitude))
    equal = all(one.dtype == two.dtype and torch.equal(one, two) for one, two in pairs)
    return equal and first.alpha == second.alpha and (first.magnitude is None) == (second.magnitude is None)


@given(
    alpha=st.floats(1e-6, 1e6),
    layout=st.sampled_from(["kohya", "diffusers"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_any_alpha_and_dtype_comes_back(
    alpha: float, layout: str, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("lora") / "it.safetensors"
    names = {"kohya": (KOHYA, KOHYA + "_2"), "diffusers": (DIFFUSERS, DIFFUSERS + "_2")}[layout]
    given_ = {names[0]: adapter((6, 4), 2, alpha, dtype=dtype), names[1]: adapter((6, 4, 3, 3), 3, 1.5, 1, dtype=dtype)}
    write_lora(path, LoraFile(layout, given_))  # type: ignore[arg-type]
    read = read_lora(path)
    assert (read.layout, read.adapters.keys()) == (layout, given_.keys())
    assert all(same(one, given_[name]) for name, one in read.adapters.items())


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_magnitudes_come_back_and_equal_loras_are_equal_files(layout: str, tmp_path: Path):
    name = KOHYA if layout == "kohya" else DIFFUSERS
    one, conv = adapter((6, 4), dora=True), adapter((6, 4, 3, 3), dora=True)
    entries = {f"key{number}": "x" for number in range(20)} | {"sshs_model_hash": "of other bytes"}
    for file in ("a", "b"):
        write_lora(tmp_path / file, LoraFile(layout, {name: one, f"{name}_2": conv}, entries))  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_lora(tmp_path / "a")
    assert same(read.adapters[name], one)
    assert same(read.adapters[f"{name}_2"], conv)
    assert read.metadata == {f"key{number}": "x" for number in range(20)}
    shapes = {
        key.rpartition(".")[2]: tuple(value.shape) for key, value in load_file(tmp_path / "a").items() if "_2" in key
    }
    expected = {"kohya": ("dora_scale", (6, 1, 1, 1)), "diffusers": ("lora_magnitude_vector", (1, 6, 1, 1))}[layout]
    assert expected in shapes.items()


def test_kohya_files_state_rank_and_alpha(tmp_path: Path):
    for ranks, said in (((4, 4), ("4", "2.0")), ((4, 3), ("Dynamic", "2.0"))):
        adapters = {f"lora_unet_{number}": adapter((6, 4), rank, 2.0) for number, rank in enumerate(ranks)}
        write_lora(tmp_path / "it", LoraFile("kohya", adapters))
        with safe_open(tmp_path / "it", "pt") as file:
            metadata = file.metadata()
        assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == said
        assert load_file(tmp_path / "it")["lora_unet_0.alpha"].dtype == torch.float32


@pytest.mark.parametrize(
    ("down", "up", "name"),
    [
        ("unet.a.attn1.to_q.lora_A.weight", "unet.a.attn1.to_q.lora_B.weight", "unet.a.attn1.to_q"),
        ("unet.a.attn1.to_q.lora.down.weight", "unet.a.attn1.to_q.lora.up.weight", "unet.a.attn1.to_q"),
        (
            "unet.a.attn1.processor.to_out_lora.down.weight",
            "unet.a.attn1.processor.to_out_lora.up.weight",
            "unet.a.attn1.to_out.0",
        ),
        ("a.attn1.processor.to_k_lora.down.weight", "a.attn1.processor.to_k_lora.up.weight", "unet.a.attn1.to_k"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight",
            "text_encoder.encoder.layers.0.self_attn.out_proj",
        ),
        (
            "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
            "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
            "text_encoder_2.encoder.layers.0.self_attn.q_proj",
        ),
        (
            "text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight",
            "text_encoder.encoder.layers.0.mlp.fc1.lora_B.weight",
            "text_encoder.encoder.layers.0.mlp.fc1",
        ),
    ],
)
def test_older_spellings_of_diffusers_are_read(down: str, up: str, name: str, tmp_path: Path):
    one = adapter((6, 4), 2)
    save_file({down: one.down, up: one.up}, tmp_path / "it")
    read = read_lora(tmp_path / "it")
    assert list(read.adapters) == [name]
    assert same(read.adapters[name], one), "without a note alpha is the rank"


def test_diffusers_notes_are_heeded(tmp_path: Path):
    adapters = {f"unet.layer.{number}.to_q": adapter((6, 4), 4) for number in range(3)}
    write_lora(tmp_path / "it", LoraFile("diffusers", adapters))
    noted = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"1.to_q": 2.5}, "unet.use_rslora": False}
    tensors = load_file(tmp_path / "it")
    for extra, expected in (({}, [8.0, 2.5, 8.0]), ({"unet.use_rslora": True}, [16.0, 5.0, 16.0])):
        save_file(tensors, tmp_path / "it", {"lora_adapter_metadata": json.dumps(noted | extra)})
        read = read_lora(tmp_path / "it").adapters
        assert [read[name].alpha for name in adapters] == expected


def test_notes_of_text_encoders_are_found_under_published_names(tmp_path: Path):
    """As PEFT writes them of networks that have `text_model.`, and as we do."""
    adapters = {f"text_encoder.encoder.layers.{number}.mlp.fc1": adapter((6, 4), 4) for number in range(3)}
    write_lora(tmp_path / "it", LoraFile("diffusers", adapters))
    tensors = load_file(tmp_path / "it")
    patterns = {"text_model.encoder.layers.0.mlp.fc1": 2.5, "encoder.layers.1.mlp.fc1": 3}
    noted = {"text_encoder.lora_alpha": 8, "text_encoder.alpha_pattern": patterns}
    save_file(tensors, tmp_path / "it", {"lora_adapter_metadata": json.dumps(noted)})
    assert [one.alpha for one in read_lora(tmp_path / "it").adapters.values()] == [2.5, 3.0, 8.0]


def test_a_linear_adapter_may_be_dora_only_where_all_are_in_diffusers_layout(tmp_path: Path):
    mixed = {"unet.a": adapter((6, 4), dora=True), "unet.b": adapter((6, 4))}
    with pytest.raises(VegaError, match="DoRA magnitudes and others none.*--layout kohya"):
        write_lora(tmp_path / "it", LoraFile("diffusers", mixed))
    assert not list(tmp_path.iterdir())


ONE = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensors"),
        ({"lora_unet_a.hada_w1_a": ONE}, "lora_unet_a.hada_w1_a is LoHa"),
        ({"lora_unet_a.lokr_w1": ONE}, "is LoKr"),
        ({"lora_unet_a.lora_mid.weight": ONE}, "three factors"),
        ({"conv_in.weight": ONE}, "conv_in.weight is no part of a LoRA"),
        ({"unet.a.lora_B.bias": ONE}, "with biases"),
        ({"lora_unet_a.lora_down.weight": ONE}, "lora_unet_a is not whole; allowed: lora_down and lora_up"),
        ({"unet.a.lora_B.weight": ONE}, "unet.a is not whole; allowed: lora_A and lora_B"),
        ({"unet.a.lora_A.weight": ONE, "unet.a.lora_B.weight": ONE.clone()}, r"factors \[2, 4\] and \[2, 4\]"),
        (
            {
                "lora_unet_a.lora_down.weight": ONE,
                "lora_unet_a.lora_up.weight": ONE.T.contiguous(),
                "lora_unet_a.dora_scale": torch.ones(1, 4),
            },
            r"magnitude \[1, 4\]; allowed: one a row",
        ),
    ],
)
def test_what_is_no_lora_is_refused_by_name(tensors: dict, message: str, tmp_path: Path):
    save_file(tensors, tmp_path / "it.safetensors")
    with pytest.raises(UnreadableModel, match=message) as caught:
        read_lora(tmp_path / "it.safetensors")
    assert "\n" not in str(caught.value)


def test_truncated_files_and_missing_ones_are_told(tmp_path: Path):
    write_lora(tmp_path / "whole", LoraFile("kohya", {KOHYA: adapter((6, 4))}))
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-5])
    with pytest.raises(UnreadableModel, match="cut: truncated or not a safetensors file"):
        read_lora(tmp_path / "cut")
    with pytest.raises(MissingFile, match="loras: .*nothing' is no file"):
        lora_path(tmp_path / "nothing")
    with pytest.raises(MissingFile, match="FILE: .*pytorch_lora_weights"):
        lora_path(tmp_path, "FILE")
    with pytest.raises(VegaError, match="cannot be written"):
        write_lora(tmp_path, LoraFile("kohya", {KOHYA: adapter((6, 4))}))
