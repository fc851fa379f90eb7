"""A run takes denormal numbers as zeros, and leaves the process as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vega_diffusion.training.denormals import flushed_denormals
from vega_diffusion.training.run import run_recipe
from vega_diffusion.training.run_directory import RunDirectory

TINY = 1e-40


def product() -> float:
    """A product of tensors that is denormal where such numbers exist."""
    return (torch.full((), TINY) * 1.0).item()


def test_denormals_are_zeros_within_and_numbers_again_after() -> None:
    assert product() > 0
    with flushed_denormals() as works:
        assert works
        assert product() == 0
        with flushed_denormals():  # a run within a run leaves the outer one as it is
            assert product() == 0
        assert product() == 0
        with ThreadPoolExecutor(1) as pool:  # threads that are started meanwhile do the same
            assert pool.submit(product).result() == 0
    assert product() > 0


def test_they_are_numbers_again_after_an_error() -> None:
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert product() > 0


def test_gradients_are_computed_so() -> None:
    """Backwards, too: the gradient's product is made where the run is, not in a thread of its own."""
    given = torch.full((4,), TINY, requires_grad=True)
    for within in (False, True):
        given.grad = None
        with flushed_denormals() if within else torch.enable_grad():
            (given * torch.full((4,), 0.5)).backward(torch.full((4,), TINY))
        assert given.grad is not None
        assert bool(given.grad.any()) is not within


def test_a_run_takes_them_as_zeros(recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    found = []
    monkeypatch.setattr("vega_diffusion.training.run.make_accelerator", lambda *_: found.append(product()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe(), RunDirectory("some"), warn=print)
    assert found == [0.0]
    assert product() > 0
