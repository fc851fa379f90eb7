"""The average in closed form, and in and out of a student."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vega_diffusion.specs.optimizer import EmaSpec
from vega_diffusion.training.ema import Ema, ema_decay


def test_decay_warms_up_then_stays():
    spec = EmaSpec(decay=0.9, warmup=10)
    assert [ema_decay(spec, step) for step in (0, 1, 9)] == pytest.approx([1 / 10, 2 / 11, 10 / 19])
    assert ema_decay(spec, 80) == ema_decay(spec, 10_000) == 0.9


def test_average_of_known_weights():
    module, spec = nn.Linear(1, 1, bias=False), EmaSpec(decay=0.5, warmup=4)
    nn.init.constant_(module.weight, 8.0)
    ema, expected = Ema(spec, module), 8.0
    for step, value in enumerate([4.0, 2.0, 16.0, -1.0]):
        nn.init.constant_(module.weight, value)
        ema.update(module, step)
        decay = min(0.5, (1 + step) / (4 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_applied_comes_back_even_after_an_error():
    module = nn.Linear(2, 2)
    ema = Ema(EmaSpec(), module)
    nn.init.constant_(module.weight, 5.0)
    with pytest.raises(RuntimeError), ema.applied(module):
        assert torch.equal(module.weight, ema.state_dict()["weight"])
        raise RuntimeError
    assert torch.equal(module.weight, torch.full((2, 2), 5.0))


def test_frozen_parameters_have_no_average_and_state_round_trips():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    ema = Ema(EmaSpec(), module)
    assert ema.names == ["weight"]
    other = Ema(EmaSpec(), module)
    other.load_state_dict({"weight": torch.full((2, 2), 3.0)})
    ema.load_state_dict(other.state_dict())
    assert torch.equal(ema.state_dict()["weight"], torch.full((2, 2), 3.0))
    with pytest.raises(ValueError, match="other parameters"):
        ema.load_state_dict({"bias": torch.zeros(2)})
