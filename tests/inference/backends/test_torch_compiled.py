"""Compiled torch: regions are compiled once a shape, the answers stay, and closing leaves the U-Net as it was."""

from __future__ import annotations

import pytest
import torch

from tiny_backends import smallest_unet
from tiny_questions import random_question
from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.protocol import Bucket, Denoiser, InUse
from vega_diffusion.inference.backends.torch_compiled import REGIONS, TorchCompiled, num_compiled_graphs
from vega_diffusion.inference.backends.torch_eager import TorchEager


def test_regions_take_the_compilers_road_once_a_shape() -> None:
    unet = smallest_unet()
    regions = [module for module in unet.modules() if type(module).__name__ in REGIONS]
    assert {type(module).__name__ for module in regions} == set(REGIONS)
    denoiser: Denoiser = TorchCompiled(lambda: unet, compiler="eager")
    eager = TorchEager(smallest_unet)
    assert denoiser.in_use == InUse("torch-compiled", "fp32", False, ("cpu",))
    before = num_compiled_graphs()
    for rows in (2, 1):
        question = random_question(unet, rows)
        prediction, deep = denoiser.full(question)
        assert torch.equal(prediction, eager.predict(question))
        assert torch.equal(denoiser.shallow(question, deep), prediction)
        compiled = num_compiled_graphs()
        assert torch.equal(denoiser.predict(question), prediction)
        assert num_compiled_graphs() == compiled, "a known shape compiles nothing"
        assert compiled > before
        before = compiled
    assert denoiser.in_use.is_compiled
    denoiser.close()
    assert all(module._compiled_call_impl is None for module in regions)
    assert TorchEager(lambda: unet).in_use.backend == "torch"


def test_buckets_are_counted_lazily() -> None:
    unet = smallest_unet()
    denoiser = TorchCompiled(lambda: unet, compiler="eager")
    assert denoiser.buckets == frozenset()
    denoiser.predict(random_question(unet, 1, 4, 6))
    assert denoiser.buckets == {Bucket(1, 4, 6, 7)}
    denoiser.close()


def test_cuda_graphs_are_for_cuda() -> None:
    with pytest.raises(InvalidValue, match="cuda_graphs: True is not allowed; allowed: False on cpu"):
        TorchCompiled(smallest_unet, cuda_graphs=True)


@pytest.mark.slow
def test_inductor_compiles_and_answers_as_eager_torch() -> None:
    unet = smallest_unet()
    denoiser = TorchCompiled(lambda: unet)
    before = num_compiled_graphs()
    question = random_question(unet)
    prediction, deep = denoiser.full(question)
    torch.testing.assert_close(prediction, TorchEager(smallest_unet).predict(question), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(denoiser.shallow(question, deep), prediction, atol=1e-5, rtol=1e-4)
    assert num_compiled_graphs() > before
    assert denoiser.in_use == InUse("torch-compiled", "fp32", True, ("cpu",))
    denoiser.close()


@pytest.mark.gpu
def test_cuda_graphs_answer_as_eager_torch() -> None:
    unet = smallest_unet().to("cuda")
    denoiser = TorchCompiled(lambda: unet, cuda_graphs=True)
    for seed in range(4):
        question = random_question(unet, seed=seed).mapped(lambda tensor: tensor.to("cuda"))
        prediction, deep = denoiser.full(question)
        torch.testing.assert_close(prediction, TorchEager(lambda: unet).predict(question), atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(denoiser.shallow(question, deep), prediction, atol=1e-3, rtol=1e-2)
