"""The denoising loss: a perfect student has none, weights as published, text from the cache or live."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.parameterisation import training_target
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.diffusion.schedule import scaled_linear
from vega_diffusion.diffusion.weighting import min_snr_weight
from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.build import build_denoising, build_objective, build_schedule
from vega_diffusion.objectives.conditioning import encode_tokens
from vega_diffusion.objectives.denoising import Denoising
from vega_diffusion.specs.architecture import NoiseScheduleSpec
from vega_diffusion.specs.objective import DenoisingSpec, TimestepBiasSpec
from vega_diffusion.specs.presets import preset

POSITIONS = range(40, 44)


class Answer:
    """What a diffusers network returns."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class Oracle(nn.Module):
    """Answers with the very target plus an error, and keeps what it was asked."""

    def __init__(self, kind, latents, error=0.0):
        super().__init__()
        self.kind, self.latents, self.error, self.asked = kind, latents, error, {}

    def forward(self, x_t, timesteps, encoder_hidden_states, added_cond_kwargs):
        schedule, rng = scaled_linear(), PositionRng(3, POSITIONS)
        noise = rng.normal(self.latents.shape[1:], "noise")
        torch.testing.assert_close(x_t, schedule.add_noise(self.latents, noise, timesteps))
        self.asked = {"text": encoder_hidden_states, "timesteps": timesteps} | added_cond_kwargs
        return Answer(training_target(self.kind, schedule, self.latents, noise, timesteps) + self.error)


def batch(**more):
    torch.manual_seed(0)
    tensors = {
        "latents": torch.randn(4, 4, 8, 8),
        "time_ids": torch.arange(24.0).view(4, 6),
        "prompt_embeds": torch.randn(4, 5, 12),
        "pooled_prompt_embeds": torch.randn(4, 7),
    }
    return Batch(list("abcd"), tensors | more)


def loss_of(kind, gamma, error=0.0, **more):
    data = batch(**more)
    oracle = Oracle(kind, data.tensors["latents"], error)
    objective = Denoising(DenoisingSpec(min_snr_gamma=gamma), kind, scaled_linear(), {})
    return objective(nn.ModuleDict({"unet": oracle}), data, PositionRng(3, POSITIONS)), oracle, data


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_student_has_no_loss(kind, gamma):
    assert loss_of(kind, gamma)[0].per_sample.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_are_min_snr_of_each_sample(kind):
    loss, oracle, _ = loss_of(kind, 5.0, error=0.5)
    snr = scaled_linear().snr(oracle.asked["timesteps"])
    torch.testing.assert_close(loss.per_sample, 0.25 * min_snr_weight(snr, 5.0, kind), rtol=1e-4, atol=1e-6)
    assert loss.parts["mse"].item() == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(loss_of(kind, None, error=0.5)[0].per_sample, torch.full((4,), 0.25), rtol=1e-4, atol=0)


def test_condition_is_handed_on_and_silenced_where_asked():
    keep = torch.tensor([True, False, True, False])
    _, oracle, data = loss_of("epsilon", None, keep=keep)
    assert torch.equal(oracle.asked["time_ids"], data.tensors["time_ids"])
    for name, given in (("text", "prompt_embeds"), ("text_embeds", "pooled_prompt_embeds")):
        assert torch.equal(oracle.asked[name][keep], data.tensors[given][keep])
        assert (oracle.asked[name][~keep] == 0).all()


def test_live_text_equals_cached_text_and_reaches_trained_encoders():
    spec = preset("vega-mini")
    torch.manual_seed(0)
    assert spec.text_encoder_2 is not None
    unet, first, second = (
        build_unet(spec.unet),
        build_text_encoder(spec.text_encoder),
        build_text_encoder(spec.text_encoder_2),
    )
    ids = torch.randint(0, 4000, (2, 77))
    ids[:, 9:] = 4095
    data = {"latents": torch.randn(2, 4, 8, 8), "time_ids": torch.full((2, 6), 128.0)}
    live = Batch(["a", "b"], data | {"input_ids": ids, "input_ids_2": ids})
    with torch.no_grad():
        embeds, pooled = encode_tokens(first, second, ids, ids)
    assert embeds.shape == (2, 77, 192)
    assert pooled.shape == (2, 128)
    cached = Batch(["a", "b"], data | {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})
    rng = PositionRng(0, [0, 1])
    frozen = build_objective(DenoisingSpec(), spec, {"text_encoder": first, "text_encoder_2": second})
    student = nn.ModuleDict({"unet": unet})
    torch.testing.assert_close(frozen(student, live, rng).total, frozen(student, cached, rng).total)
    joint = nn.ModuleDict({"unet": unet, "text_encoder": first, "text_encoder_2": second})
    build_objective(DenoisingSpec(), spec, {})(joint, live, rng).total.backward()
    for encoder, name in ((first, "embeddings.token_embedding.weight"), (second, "text_projection.weight")):
        grad = encoder.get_parameter(name).grad
        assert grad is not None
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_schedules_are_built_as_the_model_says(kind):
    from diffusers import DDPMScheduler

    spec = NoiseScheduleSpec(beta_schedule=kind, rescale_betas_zero_snr=True, num_train_timesteps=500)
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": kind, "rescale_betas_zero_snr": True}
    reference = DDPMScheduler(num_train_timesteps=500, **config)
    torch.testing.assert_close(build_schedule(spec).alphas_cumprod, reference.alphas_cumprod, rtol=2e-4, atol=1e-6)


def test_a_samples_own_weight_scales_its_loss():
    weight = torch.tensor([2.0, 0.6, 2.0, 0.6])
    plain = loss_of("epsilon", 5.0, error=0.5)[0]
    weighted = loss_of("epsilon", 5.0, error=0.5, loss_weight=weight)[0]
    torch.testing.assert_close(weighted.per_sample, plain.per_sample * weight)
    torch.testing.assert_close(weighted.parts["mse"], plain.parts["mse"])


def question_of(**settings):
    data = batch()
    task = build_denoising(DenoisingSpec(**settings), preset("vega-mini"), {})
    return task, task.question(nn.Module(), data, PositionRng(3, POSITIONS)), data.tensors["latents"]


def test_offset_noise_is_one_number_a_channel_in_input_and_target():
    task, plain, _ = question_of()
    _, moved, x0 = question_of(noise_offset=0.1)
    offset = moved.target - plain.target
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset))
    torch.testing.assert_close(
        offset[:, :, 0, 0], 0.1 * PositionRng(3, POSITIONS).normal((4, 1, 1), "noise_offset")[:, :, 0, 0]
    )
    torch.testing.assert_close(moved.x_t, task.schedule.add_noise(x0, moved.target, moved.timesteps))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_is_predicted_may_differ_from_the_models_own(kind):
    task, asked, x0 = question_of(prediction_type=kind)
    noise = PositionRng(3, POSITIONS).normal(x0.shape[1:], "noise")
    torch.testing.assert_close(asked.target, training_target(kind, task.schedule, x0, noise, asked.timesteps))


def test_biased_timesteps_are_as_often_as_the_spec_says():
    bias = TimestepBiasSpec(begin=200, end=300, multiplier=4.0)
    task = build_denoising(DenoisingSpec(timestep_bias=bias), preset("vega-mini"), {})
    drawn = task._timesteps(PositionRng(0, range(20_000)))
    inside = ((drawn >= 200) & (drawn < 300)).float().mean().item()
    assert inside == pytest.approx(400 / 1300, abs=0.015)  # four standard deviations
    assert (drawn.min().item(), drawn.max().item()) == (0, 999)
    never = TimestepBiasSpec(begin=0, end=999, multiplier=1e-9)
    only = build_denoising(DenoisingSpec(timestep_bias=never), preset("vega-mini"), {})
    assert set(only._timesteps(PositionRng(0, range(50))).tolist()) == {999}


def test_a_range_of_timesteps_must_be_one():
    with pytest.raises(InvalidValue, match="timestep_bias.begin: 5 .* less than end 5"):
        TimestepBiasSpec(begin=5, end=5, multiplier=2.0)
    beyond = DenoisingSpec(timestep_bias=TimestepBiasSpec(begin=5, end=1001, multiplier=2.0))
    with pytest.raises(InvalidValue, match="timestep_bias.end: 1001 .* at most 1000"):
        build_denoising(beyond, preset("vega-mini"), {})
