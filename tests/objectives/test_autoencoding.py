"""The autoencoding loss by hand, against diffusers, and on a perfect student."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tiny_models import small_autoencoder
from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.autoencoding import (
    Autoencoding,
    edge_error,
    measure_scaling,
    psnr,
    reconstruct,
    start_fresh,
)
from vega_diffusion.specs.objective import AutoencodingSpec


@pytest.fixture
def vae():
    return small_autoencoder()


def student(vae):
    return nn.ModuleDict({"vae": vae})


def batch(count=3):
    torch.manual_seed(1)
    return Batch([str(number) for number in range(count)], {"pixels": torch.rand(count, 3, 16, 16) * 2 - 1})


def test_reconstruction_and_kl_are_those_of_diffusers(vae):
    pixels, rng = batch().tensors["pixels"], PositionRng(0, range(3))
    shown, kl = reconstruct(vae, pixels, rng)
    posterior = vae.encode(pixels).latent_dist
    noise = rng.normal(posterior.mean.shape[1:], "posterior")
    torch.testing.assert_close(shown, vae.decode(posterior.mean + posterior.std * noise).sample)
    torch.testing.assert_close(kl * posterior.mean[0].numel(), posterior.kl())


def test_parts_by_hand(vae):
    spec = AutoencodingSpec(l1_weight=2.0, l2_weight=3.0, edge_weight=0.5, kl_weight=0.1)
    data, rng = batch(), PositionRng(0, range(3))
    loss = Autoencoding(spec)(student(vae), data, rng)
    error = reconstruct(vae, data.tensors["pixels"], rng)[0] - data.tensors["pixels"]
    kl = reconstruct(vae, data.tensors["pixels"], rng)[1]
    for row in range(3):
        one = error[row]
        edge = one.diff(dim=-1).abs().mean() + one.diff(dim=-2).abs().mean()
        expected = 2 * one.abs().mean() + 3 * one.square().mean() + 0.5 * edge + 0.1 * kl[row]
        torch.testing.assert_close(loss.per_sample[row], expected.detach())
    torch.testing.assert_close(loss.total, loss.per_sample.mean())
    assert loss.total.requires_grad
    assert set(loss.parts) == {"l1", "edge", "kl", "psnr"}
    assert not any(part.requires_grad for part in loss.parts.values())


@pytest.mark.parametrize("field", ["l1_weight", "l2_weight", "edge_weight", "kl_weight"])
def test_every_weight_counts(vae, field):
    def total(value):
        weights: dict[str, Any] = dict.fromkeys(("l1_weight", "l2_weight", "edge_weight", "kl_weight"), 0.0) | {
            field: value
        }
        return Autoencoding(AutoencodingSpec(**weights))(student(vae), batch(), PositionRng(0, range(3))).total.item()

    assert total(0.0) == 0
    assert total(2.0) == pytest.approx(2 * total(1.0))
    assert total(1.0) > 0


def test_a_shifted_picture_has_no_edge_error_and_known_psnr():
    error = torch.full((2, 3, 4, 4), 0.2)
    assert edge_error(error).tolist() == [0, 0]
    assert psnr(torch.tensor([0.04])).item() == pytest.approx(10 * math.log10(4 / 0.04), rel=1e-5)


def test_a_fresh_start_and_the_scale_of_latents(vae):
    pixels = batch(8).tensors["pixels"]
    start_fresh(vae, -6.0)
    posterior = vae.encode(pixels).latent_dist
    assert posterior.logvar.mean().item() == pytest.approx(-6.0, abs=0.2)
    draws = torch.cat([posterior.sample() for _ in range(50)]).detach()
    assert measure_scaling(vae, pixels) == pytest.approx(1 / draws.std().item(), rel=0.02)
