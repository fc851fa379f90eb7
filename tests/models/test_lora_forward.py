"""Adapted maps as one autograd function: the same as PEFT, and left to PEFT where it is not the plain case."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from safetensors.torch import load_file
from torch import Tensor, nn

from vega_diffusion.models.attention import use_training_attention
from vega_diffusion.models.lora import add_lora, save_lora
from vega_diffusion.models.lora_forward import AdaptedLinear, adapted_maps, plain_map
from vega_diffusion.models.measure import example_inputs
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.lora import LORA_FILE, LoraSpec

from ..tiny_models import tiny


class Maps(nn.Module):
    """Two maps of one input, with a bias and without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(12, 20, bias=False)


def adapted(more: dict[str, Any] | None = None, alpha: float = 6.0) -> Any:
    torch.manual_seed(0)
    module = Maps()
    add_lora(module, LoraSpec(rank=3, alpha=alpha, targets=("first", "second"), **(more or {})), 1)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return module


def gradients(outs: tuple[Tensor, ...], x: Tensor, module: nn.Module) -> dict[str, Tensor]:
    module.zero_grad()
    x.grad = None
    torch.manual_seed(2)
    sum((out.float() * torch.randn(out.shape)).sum() for out in outs).backward()  # type: ignore[union-attr]
    found = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    return {name: grad.clone() for name, grad in (found | {"x": x.grad}).items() if grad is not None}


@pytest.mark.parametrize("alpha", [3.0, 6.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_and_gradients_are_pefts(autocast: bool, alpha: float):
    module = adapted(alpha=alpha)
    x = torch.randn(2, 5, 12, requires_grad=True)
    layers = (module.first, module.second)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = tuple(PeftLinear.forward(layer, x) for layer in layers)
        plain = [one for one in (plain_map(layer, x) for layer in layers) if one is not None]
        assert len(plain) == 2
        together, alone = adapted_maps(x, plain), tuple(layer(x) for layer in layers)
    theirs = gradients(expected, x, module)
    assert len(theirs) == 5
    for outs in (together, alone):
        near: dict[str, Any] = {"rtol": 3e-2, "atol": 6e-2} if autocast else {"rtol": 1e-5, "atol": 1e-5}
        for own, other in zip(outs, expected, strict=True):
            assert own.dtype == other.dtype
            torch.testing.assert_close(own, other, **near)
        ours = gradients(outs, x, module)
        assert ours.keys() == theirs.keys()
        for name, grad in ours.items():
            assert grad.dtype == torch.float32
            bound = 2e-2 if autocast else 1e-5
            assert (grad - theirs[name]).norm() <= bound * theirs[name].norm(), name


def test_an_input_that_needs_no_gradient_gets_none_and_frozen_adapters_neither():
    module = adapted()
    module.first(torch.randn(4, 12)).sum().backward()
    assert module.first.lora_A.default.weight.grad is not None
    module.zero_grad()
    module.first.lora_A.requires_grad_(False)
    x = torch.randn(4, 12, requires_grad=True)
    module.first(x).sum().backward()
    assert module.first.lora_A.default.weight.grad is None
    assert module.first.lora_B.default.weight.grad is not None
    assert x.grad is not None


@pytest.mark.parametrize("more", [{"dora": True}, {"dropout": 0.5}])
def test_dora_and_dropout_are_pefts_own(more: dict[str, Any]):
    module = adapted(more)
    assert type(module.first) is PeftLinear
    assert plain_map(module.first, torch.zeros(1, 12)) is None


def test_what_is_not_plain_at_the_moment_is_pefts_own():
    module, x = adapted(), torch.randn(4, 12)
    layer = module.first
    base, whole = layer.base_layer(x), layer(x)
    assert type(layer) is AdaptedLinear
    assert plain_map(layer, x) is not None
    layer.enable_adapters(False)
    assert plain_map(layer, x) is None
    torch.testing.assert_close(layer(x), base)
    layer.enable_adapters(True)
    layer.merge()
    assert plain_map(layer, x) is None
    torch.testing.assert_close(layer(x), whole)
    layer.unmerge()
    assert plain_map(layer, x.double()) is None
    layer.base_layer.weight.requires_grad_(True)
    assert plain_map(layer, x) is None


def test_shapes_alone_are_enough():
    with torch.device("meta"):
        module, x = adapted(), torch.zeros(2, 5, 12, requires_grad=True)
        out = module.second(x)
        assert plain_map(module.second, x) is not None
        assert out.shape == (2, 5, 20)
        out.sum().backward()
    assert module.second.lora_A.default.weight.grad.shape == (3, 12)


def test_a_copy_computes_with_its_own_weights():
    module = adapted()
    other = copy.deepcopy(module)
    nn.init.zeros_(other.first.lora_B.default.weight)
    x = torch.randn(4, 12)
    torch.testing.assert_close(other.first(x), other.first.base_layer(x))
    assert not torch.allclose(module.first(x), other.first(x))


def test_a_short_run_is_that_of_the_plain_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    ours: Any = build_unet(tiny().unet)
    add_lora(ours, LoraSpec(rank=2), 3)
    theirs = copy.deepcopy(ours)
    use_training_attention(ours)
    inputs = example_inputs(tiny().unet, 8, 8, 7)
    inputs |= {name: torch.randn_like(inputs[name]) for name in ("sample", "encoder_hidden_states")}
    used = []
    monkeypatch.setattr("vega_diffusion.models.attention.adapted_maps", lambda *a: used.append(a) or adapted_maps(*a))
    losses: dict[int, list[float]] = {}
    for number, unet in enumerate((ours, theirs)):
        if unet is theirs:
            monkeypatch.setattr("vega_diffusion.models.lora_forward.plain_map", lambda *_: None)
        optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(4):
            loss = unet(**inputs).sample.square().mean()
            losses.setdefault(number, []).append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_lora(tmp_path / str(number), {"unet": unet})
    blocks = sum(type(module).__name__ == "BasicTransformerBlock" for module in ours.modules())
    assert len(used) == 4 * 5 * blocks, "q, k and v at once; q; k and v; two ways out"
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][3] < losses[0][0]
    first, second = (load_file(tmp_path / str(number) / LORA_FILE) for number in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        # AdamW's first steps are the sign of a gradient: one that is zero but for rounding may go either way.
        assert (value - second[name]).norm() <= 1e-3 * second[name].norm() + 1e-5, name
