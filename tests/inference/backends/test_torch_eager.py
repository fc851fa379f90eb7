"""The plain backend is diffusers' U-Net bit for bit at full depth, and its shallow depth agrees with the full one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import SHAPES, tiny
from tiny_questions import random_question
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.protocol import Bucket, Denoiser, InUse, Question, joined
from vega_diffusion.inference.backends.split import deep_shape, num_branches
from vega_diffusion.inference.backends.torch_eager import PRECISIONS, TorchEager
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.presets import preset

ATTENTION_LAST: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
}
# What is published, small: no time ids and attention in the last up block (SD-1.5), one layer a level (KOALA), guidance
# as an input (LCM), and the odd shapes that the engine's tests use.
CHANGES: dict[str, dict[str, Any]] = SHAPES | {
    "sd-1.5": ATTENTION_LAST
    | {
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
    "koala": {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 2), "mid_block_type": None},
    "distilled-guidance": {"time_cond_proj_dim": 24},
}

LARGE = ("sdxl", "ssd-1b", "koala-1b", "koala-700m", "sd-1.5")


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    unet: Any = build_unet(tiny(**CHANGES[name]).unet)
    return unet.to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unets() -> dict[str, Any]:
    return {name: make(name) for name in CHANGES}


def by_diffusers(unet: Any, question: Question) -> torch.Tensor:
    with torch.inference_mode():
        return unet(
            question.x_t,
            question.timesteps,
            encoder_hidden_states=question.prompt_embeds,
            timestep_cond=question.timestep_cond,
            added_cond_kwargs={"text_embeds": question.pooled_prompt_embeds, "time_ids": question.time_ids},
        ).sample


@settings(max_examples=15)
@given(
    name=st.sampled_from(sorted(CHANGES)),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    rows=st.integers(1, 3),
    data=st.data(),
)
def test_full_is_diffusers_and_shallow_is_full(
    unets: dict[str, Any], name: str, height: int, width: int, rows: int, data: st.DataObject
) -> None:
    unet = unets[name]
    branch = data.draw(st.integers(0, num_branches(unet) - 1))
    question = random_question(unet, rows, height, width, seed=height)
    denoiser: Denoiser = TorchEager(lambda: unet, branch)
    expected = by_diffusers(unet, question)
    prediction, deep = denoiser.full(question)
    assert torch.equal(prediction, expected)
    assert torch.equal(denoiser.predict(question), expected)
    assert deep.shape == deep_shape(unet, question, branch)
    assert torch.equal(denoiser.shallow(question, deep), expected)


@pytest.mark.parametrize("name", ["tiny", "sd-1.5"])
def test_the_largest_branch_gets_what_the_last_up_block_receives_from_below(unets: dict[str, Any], name: str) -> None:
    unet, seen = unets[name], []
    question = random_question(unet)
    hook = unet.up_blocks[-1].register_forward_pre_hook(
        lambda _, __, given: seen.append(given["hidden_states"]), with_kwargs=True
    )
    by_diffusers(unet, question)
    hook.remove()
    _, deep = TorchEager(lambda: unet, num_branches(unet) - 1).full(question)
    assert torch.equal(deep, seen[0])


def test_a_shallow_step_depends_on_its_own_latents_and_time_and_on_deep(unets: dict[str, Any]) -> None:
    unet = unets["tiny"]
    denoiser = TorchEager(lambda: unet)
    question, other = random_question(unet, seed=0), random_question(unet, seed=1)
    _, deep = denoiser.full(question)
    mixed = denoiser.shallow(other, deep)
    assert not torch.equal(mixed, denoiser.predict(other))
    assert not torch.equal(mixed, denoiser.shallow(question, deep))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_kept_and_equal_diffusers(dtype: torch.dtype) -> None:
    unet = make("tiny", dtype)
    question = random_question(unet)
    denoiser = TorchEager(lambda: unet)
    prediction, deep = denoiser.full(question)
    assert prediction.dtype == dtype
    assert torch.equal(prediction, by_diffusers(unet, question))
    assert torch.equal(denoiser.shallow(question, deep), prediction)
    assert denoiser.in_use == InUse("torch", PRECISIONS[dtype], False, ("cpu",))
    assert denoiser.in_use.precision in ("bf16", "fp16")


@pytest.mark.parametrize("name", ["tiny", "sd-1.5"])
def test_rows_with_timesteps_of_their_own_are_those_asked_alone(unets: dict[str, Any], name: str) -> None:
    denoiser = TorchEager(lambda: unets[name])
    questions = [random_question(unets[name], 1, seed=seed) for seed in range(3)]
    packed = denoiser.predict(joined(questions))
    for row, question in zip(packed.split(1), questions, strict=True):
        # fp32 kernels of torch differ by batch size in the last bits (docs/engine.md)
        torch.testing.assert_close(row, denoiser.predict(question), atol=1e-5, rtol=1e-4)


def test_channels_last_keeps_the_values_of_the_weights_and_close_undoes_it() -> None:
    unet = make("tiny")
    question = random_question(unet)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    expected = by_diffusers(unet, question)
    denoiser = TorchEager(lambda: unet, channels_last=True)
    torch.testing.assert_close(denoiser.predict(question), expected, atol=1e-5, rtol=1e-4)
    kernel = unet.down_blocks[0].resnets[0].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    denoiser.close()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert torch.equal(by_diffusers(unet, question), expected)


def test_a_branch_that_is_not_there_is_an_error(unets: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=r"branch: 3 is not allowed; allowed: 0 to 2 .*smaller"):
        TorchEager(lambda: unets["tiny"], 3)
    with pytest.raises(InvalidValue, match="0 to 1"):
        TorchEager(lambda: unets["koala"], -1)


def test_buckets_are_read_from_questions(unets: dict[str, Any]) -> None:
    assert Bucket.of(random_question(unets["tiny"], 3, 8, 9, 7)) == Bucket(3, 8, 9, 7)
    assert str(Bucket(2, 16, 16)) == "2x16x16x77"


@pytest.mark.parametrize(
    "name",
    [
        "vega",
        "vega-mini",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("sdxl", "ssd-1b", "koala-1b", "koala-700m", "sd-1.5")
        ),
    ],
)
def test_every_known_shape_can_be_cut(name: str) -> None:
    spec: UNetSpec = preset(name).unet
    with torch.device("meta"):
        unet = build_unet(spec).eval().requires_grad_(False)
        question = random_question(unet, 1, 16, 16).mapped(lambda tensor: tensor.to("meta"))
        denoiser = TorchEager(lambda: unet)
        prediction, deep = denoiser.full(question)
        assert deep.shape == deep_shape(unet, question, 0)
        assert denoiser.shallow(question, deep).shape == prediction.shape == (1, 4, 16, 16)


def test_adapters_that_peft_injects_act_at_both_depths(unets: dict[str, Any]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    unet = make("tiny")
    question = random_question(unet)
    plain = TorchEager(lambda: unet).predict(question)
    targets = ["conv1", "to_q", "conv_shortcut"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), unet)
    denoiser = TorchEager(lambda: unet)
    prediction, deep = denoiser.full(question)
    assert not torch.equal(prediction, plain)
    assert torch.equal(prediction, by_diffusers(unet, question))
    assert torch.equal(denoiser.shallow(question, deep), prediction)
