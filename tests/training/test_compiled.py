"""Compiled gradients are compared with plain ones; the compilers here are two small backends, one of them wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vega_diffusion.errors import VegaError
from vega_diffusion.training.compiled import check_compiled

RUNS: list[str] = []


def right(graph: torch.fx.GraphModule, inputs):
    def run(*args):
        RUNS.append("right")
        return graph.forward(*args)

    return run


def wrong(graph: torch.fx.GraphModule, inputs):
    """A compiler that loses the backward pass: the values are right, the gradients are not."""

    def run(*args):
        return [out.detach() + 0 * out for out in graph.forward(*args)]

    return run


class Layer(nn.Module):
    """Torch compiles no module of its own by itself, so this is one of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).tanh()


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), nn.Linear(8, 1))


def backward(model: nn.Module):
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    return lambda: model(inputs).square().mean().backward()


def test_a_right_compiler_passes_and_no_gradient_stays(model):
    RUNS.clear()
    model[0].compile(backend=right)
    check_compiled(("0",), dict(model.named_parameters()), backward(model))
    assert RUNS == ["right"]  # once compiled, once plain
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_compiler_that_loses_gradients_is_found(model):
    model[0].compile(backend=wrong)
    with pytest.raises(VegaError, match=r"compile: 0 compiled to other gradients .*0\.linear\.(weight|bias).*100%"):
        check_compiled(("0",), dict(model.named_parameters()), backward(model))


def test_a_nan_is_a_difference(model):
    calls = iter((float("nan"), 1.0))

    def run():
        factor = next(calls)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, factor)

    with pytest.raises(VegaError, match="nan"):
        check_compiled(("0",), dict(model.named_parameters()), run)
