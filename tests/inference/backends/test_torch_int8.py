"""8 bits in torch: the numbers that are multiplied, which layers have them, and what they do to a prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tiny_models import tiny
from tiny_questions import random_question
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.faults import Route
from vega_diffusion.inference.backends.open import Weights, open_denoiser
from vega_diffusion.inference.backends.protocol import InUse, joined
from vega_diffusion.inference.backends.split import FullGraph
from vega_diffusion.inference.backends.torch_compiled import TorchCompiled
from vega_diffusion.inference.backends.torch_eager import TorchEager
from vega_diffusion.inference.backends.torch_int8 import Int8Conv2d, Int8Linear, in_8_bits, is_in_8_bits
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.presets import preset


def unet_of(name: str = "tiny", seed: int = 1) -> Any:
    torch.manual_seed(seed)
    spec = tiny(block_out_channels=(8, 16, 32)) if name == "tiny" else preset(name)
    return build_unet(spec.unet).eval().requires_grad_(False)


def rounded(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the nearest multiples of a 127th of the largest number, by the definition."""
    step = tensor.abs().amax(dims, keepdim=True) / 127
    return torch.round(tensor / step) * step


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@settings(max_examples=30)
@given(
    kernel=st.sampled_from([1, 3, (3, 1)]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1, (1, 0)]),
    bias=st.booleans(),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    rows=st.integers(1, 3),
)
def test_a_convolution_is_torchs_of_the_rounded_numbers(
    kernel: Any, stride: int, padding: Any, bias: bool, height: int, width: int, rows: int
) -> None:
    torch.manual_seed(height * width)
    wide = nn.Conv2d(8, 16, kernel, stride, padding, bias=bias).requires_grad_(False)
    asked = torch.randn(rows, 8, height, width)
    weight = rounded(wide.weight, (1, 2, 3))
    expected = torch.conv2d(rounded(asked, (1, 2, 3)), weight, wide.bias, wide.stride, wide.padding)
    found = Int8Conv2d(wide)(asked)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 7, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_linear_layer_is_torchs_of_the_rounded_numbers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = nn.Linear(24, 8).requires_grad_(False).to(dtype)
    asked = torch.randn(3, *shape, dtype=dtype)
    expected = nn.functional.linear(
        rounded(asked.float(), (-1,)), rounded(wide.weight.float(), (1,)), wide.bias.float()
    )
    found = Int8Linear(wide)(asked)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


def test_weights_are_a_byte_each_and_zeros_stay() -> None:
    wide = nn.Linear(8, 8).requires_grad_(False)
    wide.weight[0] = 0
    narrow = Int8Linear(wide)
    assert narrow.weight.dtype == torch.int8
    assert int(narrow.weight.abs().amax()) == 127
    assert torch.equal(narrow(torch.zeros(2, 8)), wide.bias.expand(2, 8))
    assert narrow(torch.randn(2, 8))[:, 0].tolist() == [float(wide.bias[0])] * 2


def test_a_unets_layers_are_in_8_bits_but_for_its_ends_and_the_time() -> None:
    unet = in_8_bits(unet_of())
    wide = [name for name, module in unet.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    ends = {"conv_in", "conv_out", "time_embedding", "add_embedding"}
    assert {name.split(".")[0] for name in wide if not name.endswith("time_emb_proj")} == ends
    assert any(name.endswith("time_emb_proj") for name in wide)
    kinds = [type(module) for module in unet.modules()]
    assert kinds.count(Int8Conv2d) >= 10
    assert kinds.count(Int8Linear) >= 10


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 8),
        nn.Linear(8, 12),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(8, 4, 3),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, dilation=2),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.ConvTranspose2d(8, 8, 3),
    ],
    ids=str,
)
def test_layers_that_do_not_fit_stay(layer: nn.Module) -> None:
    unet = nn.ModuleDict({"mid_block": nn.Sequential(layer)})
    assert not is_in_8_bits(in_8_bits(unet))


def test_predictions_stay_near_and_are_the_same_at_both_depths() -> None:
    wide, unet = unet_of(), in_8_bits(unet_of())
    question = random_question(unet, 2, 8, 8)
    denoiser = TorchEager(lambda: unet)
    prediction, deep = denoiser.full(question)
    assert denoiser.in_use == InUse("torch", "int8", False, ("cpu",))
    assert torch.equal(denoiser.predict(question), prediction)
    assert torch.equal(denoiser.shallow(question, deep), prediction)
    assert 1e-5 < relative(prediction, TorchEager(lambda: wide).predict(question)) < 0.05
    with denoiser.text_kept():
        assert torch.equal(denoiser.predict(question), prediction)


def test_rows_do_not_touch_one_another() -> None:
    unet = in_8_bits(unet_of())
    denoiser = TorchEager(lambda: unet)
    questions = [random_question(unet, 1, 8, 8, seed=seed) for seed in range(3)]
    loud = questions[2].mapped(lambda tensor: tensor * 50 if tensor.ndim == 4 else tensor)
    packed = denoiser.predict(joined([*questions[:2], loud]))
    for row, question in zip(packed.split(1), [*questions[:2], loud], strict=True):
        torch.testing.assert_close(row, denoiser.predict(question), atol=2e-3, rtol=2e-2)


def test_torch_opens_what_is_in_8_bits_and_nothing_else_by_that_name() -> None:
    narrow = in_8_bits(unet_of())
    assert open_denoiser(Route("torch", "int8"), Weights("tiny", lambda: narrow)).in_use.precision == "int8"
    with pytest.raises(InvalidValue, match="'int8'.*allowed: fp32"):
        open_denoiser(Route("torch", "int8"), Weights("tiny", unet_of))
    with pytest.raises(InvalidValue, match="'fp32'.*allowed: int8"):
        open_denoiser(Route("torch", "fp32"), Weights("tiny", lambda: narrow))


def test_nearly_all_of_vega_is_in_8_bits() -> None:
    """At full size, without numbers: a byte a weight, and the shapes of an evaluation at 1024 px go through."""
    with torch.device("meta"):
        unet = unet_of("vega")
        total = sum(parameter.numel() for parameter in unet.parameters())
        narrow = TorchEager(lambda: in_8_bits(unet))
        question = random_question(unet, 2, 128, 128).mapped(lambda tensor: tensor.to("meta"))
        assert narrow.predict(question).shape == (2, 4, 128, 128)
    in_bytes = sum(buffer.numel() for buffer in unet.buffers() if buffer.dtype == torch.int8)
    assert 0.96 < in_bytes / total < 1
    assert total == 745_225_604


def test_the_compiler_takes_layers_in_8_bits_whole() -> None:
    """As on a GPU, but for the last step: torch's tracer goes through without a break, and the answer stays."""
    unet = in_8_bits(unet_of())
    question = random_question(unet, 2, 8, 8)
    expected = TorchEager(lambda: unet).predict(question)
    whole = torch.compile(FullGraph(unet, 0), backend="eager", fullgraph=True, dynamic=False)
    with torch.inference_mode():
        torch.testing.assert_close(whole(**question.named())[0], expected)
    by_regions = TorchCompiled(lambda: unet, compiler="eager")
    torch.testing.assert_close(by_regions.predict(question), expected)
    assert by_regions.in_use == InUse("torch-compiled", "int8", True, ("cpu",))
    by_regions.close()
