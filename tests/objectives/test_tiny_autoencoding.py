"""The tiny autoencoder's loss by hand, on a perfect student, and its start; the full one never learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny_models import small_autoencoder
from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.models.autoencoder import build_tiny_autoencoder
from vega_diffusion.objectives.tiny_autoencoding import TinyAutoencoding, full_answers
from vega_diffusion.specs.objective import TinyAutoencodingSpec
from vega_diffusion.specs.tiny_autoencoder import TinyAutoencoderSpec

SMALL = TinyAutoencoderSpec(
    latent_channels=2,
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(0, 1),
    num_decoder_blocks=(1, 0),
)
WEIGHTS = ("teacher_weight", "picture_weight", "l1_weight", "l2_weight", "edge_weight", "latent_weight")


@pytest.fixture
def vae() -> Any:
    return small_autoencoder(scaling_factor=0.5).requires_grad_(False)


class Answers(nn.Module):
    """Gives what it was told to give."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return self.answer


def batch(count: int = 3) -> Batch:
    torch.manual_seed(1)
    return Batch([str(number) for number in range(count)], {"pixels": torch.rand(count, 3, 16, 16) * 2 - 1})


def student() -> nn.ModuleDict:
    torch.manual_seed(2)
    return nn.ModuleDict({"vae_tiny": build_tiny_autoencoder(SMALL)})


def loss(vae: Any, tiny: nn.Module, **weights: float) -> Any:
    objective = TinyAutoencoding(TinyAutoencodingSpec(**weights), {"vae": vae})  # type: ignore[arg-type]
    return objective(tiny, batch(), PositionRng(0, range(3)))


def test_answers_are_the_mean_latents_in_the_scale_of_the_unet_and_their_picture(vae: Any) -> None:
    pixels = batch().tensors["pixels"]
    latents, shown = full_answers(vae, pixels)
    mean = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents, mean * 0.5)
    torch.testing.assert_close(shown, vae.decode(mean).sample.clamp(-1, 1))


def test_a_perfect_student_has_no_loss_but_what_the_full_one_loses_itself(vae: Any) -> None:
    pixels = batch().tensors["pixels"]
    latents, shown = full_answers(vae, pixels)
    perfect = nn.ModuleDict({"vae_tiny": nn.ModuleDict({"encoder": Answers(latents), "decoder": Answers(shown)})})
    assert loss(vae, perfect, picture_weight=0.0).total == 0
    tiny: Any = perfect["vae_tiny"]
    assert torch.equal(tiny["decoder"].asked[0], latents), "it decodes what the U-Net would give it"
    assert torch.equal(tiny["encoder"].asked[0], pixels)
    assert loss(vae, perfect).total > 0


def test_parts_by_hand(vae: Any) -> None:
    tiny = student()
    weights = dict(zip(WEIGHTS, (2.0, 0.5, 1.5, 3.0, 0.25, 0.7), strict=True))
    found = loss(vae, tiny, **weights)
    pixels = batch().tensors["pixels"]
    latents, shown = full_answers(vae, pixels)
    network: Any = tiny["vae_tiny"]
    decoded, encoded = network.decode(latents).sample, network.encode(pixels).latents
    for row in range(3):
        expected = 0.7 * (encoded[row] - latents[row]).square().mean()
        for weight, goal in ((2.0, shown), (0.5, pixels)):
            error = decoded[row] - goal[row]
            edge = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
            expected = expected + weight * (1.5 * error.abs().mean() + 3 * error.square().mean() + 0.25 * edge)
        torch.testing.assert_close(found.per_sample[row], expected.detach())
    assert set(found.parts) == {"latent", "psnr", "psnr_picture"}
    found.total.backward()
    assert all(p.grad is not None for p in tiny.parameters())
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("field", WEIGHTS)
def test_every_weight_counts(vae: Any, field: str) -> None:
    tiny = student()
    usual, without = loss(vae, tiny).total, loss(vae, tiny, **{field: 0.0}).total
    assert without < usual
