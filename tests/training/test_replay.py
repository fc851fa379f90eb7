"""Draws that stay in place, whole steps that are recorded: on any machine what can be said there, on a GPU the rest."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.errors import VegaError
from vega_diffusion.training.replay import StandingRng, StepReplay

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


def test_draws_stay_where_they_are_and_become_those_of_other_positions() -> None:
    standing = StandingRng(PositionRng(3, range(4)))
    noise, steps = standing.normal((2, 2), "noise"), standing.integers(0, 1000, "timestep")
    share = standing.uniform("share")
    assert standing.normal((2, 2), "noise") is noise
    later = PositionRng(3, range(40, 44))
    standing.renew(later)
    assert torch.equal(noise, later.normal((2, 2), "noise"))
    assert torch.equal(steps, later.integers(0, 1000, "timestep"))
    assert torch.equal(share, later.uniform("share"))
    assert standing.positions == later.positions


class Fixed:
    """An objective that decides what it is told to."""

    def __init__(self, decided: Hashable = "always the same") -> None:
        self.now = decided

    def decided(self, rng: PositionRng) -> Hashable:
        return self.now


def test_what_python_decides_for_each_sample_is_not_recorded() -> None:
    replay = StepReplay(Fixed(None), nn.Identity())
    assert replay(lambda batch, rng: {"total": torch.ones(())}, _batch(0, "cpu"), PositionRng(1, range(4)))
    assert replay.recorded == 0


def _parts(device: str) -> tuple[nn.Module, PositionRng]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)).to(device), PositionRng(1, range(4), device)


def _batch(number: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(number)
    return Batch([str(number)] * 4, {"x": torch.randn(4, 8, generator=generator).to(device)})


@pytest.mark.gpu
@needs_gpu
def test_replayed_steps_have_the_gradients_of_plain_ones() -> None:
    module, _ = _parts("cuda")
    parameters = dict(module.named_parameters())

    def step(batch: Batch, rng: PositionRng) -> dict[str, Tensor]:
        noised = batch.tensors["x"] + rng.normal((8,), "noise")
        loss = (module(noised) - rng.uniform("target", (8,))).square().mean()
        loss.backward()
        return {"total": loss.detach()}

    objective = Fixed()
    replay = StepReplay(objective, module)
    for number in range(4):
        batch, rng = _batch(number, "cuda"), PositionRng(1, range(4 * number, 4 * number + 4), "cuda")
        module.zero_grad(set_to_none=True)
        wanted = float(step(batch, rng)["total"])
        plain = {name: one.grad.clone() for name, one in parameters.items() if one.grad is not None}
        module.zero_grad(set_to_none=True)
        found = float(replay(step, batch, rng)["total"])
        assert found == pytest.approx(wanted, rel=1e-5)
        for name, one in parameters.items():
            assert one.grad is not None
            torch.testing.assert_close(one.grad, plain[name], rtol=1e-4, atol=1e-6)
    assert replay.recorded == 1
    objective.now = "another teacher"
    replay(step, _batch(9, "cuda"), PositionRng(1, range(4), "cuda"))
    replay(step, _batch(9, "cuda"), PositionRng(1, range(4), "cuda"), "another phase")
    assert replay.recorded == 3


@pytest.mark.gpu
@needs_gpu
def test_a_step_that_cannot_be_replayed_is_found_out() -> None:
    module, _ = _parts("cuda")
    calls = []

    def step(batch: Batch, rng: PositionRng) -> dict[str, Tensor]:
        calls.append(0)
        loss = module(batch.tensors["x"]).square().mean() * (5.0 if len(calls) > 3 else 1.0)
        loss.backward()
        return {"total": loss.detach()}

    with pytest.raises(VegaError, match="cuda_graphs: the recorded step led to other gradients"):
        StepReplay(Fixed(), module)(step, _batch(0, "cuda"), PositionRng(1, range(4), "cuda"))
