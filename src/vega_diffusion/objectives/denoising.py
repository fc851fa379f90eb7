"""Denoising: predict the noise (or v, or x0) that was mixed into latents."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.parameterisation import PredictionType, training_target
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.diffusion.schedule import NoiseSchedule
from vega_diffusion.diffusion.weighting import min_snr_weight
from vega_diffusion.objectives.conditioning import encode_tokens, silence
from vega_diffusion.objectives.protocol import Loss
from vega_diffusion.objectives.shared_prompts import ask_by_prompt
from vega_diffusion.specs.objective import DenoisingSpec

if TYPE_CHECKING:
    from vega_diffusion.objectives.before import ModelBefore


@dataclass(frozen=True)
class Question:
    """What a denoiser is asked, and the answer that the data give.

    Args:
        x_t: Noised latents `[B, C, H, W]`.
        timesteps: Int64 `[B]`.
        prompt_embeds: `[B, L, D]`.
        added: `text_embeds [B, P]` and `time_ids [B, 6]`.
        target: What to predict, `[B, C, H, W]`, fp32.
        captions: Of encoded prompts, where they are known: equal ones are read once (`ask_by_prompt`).
        drift: How far captions are encoded from what the model before training made of them, weighted, `[B]`.
    """

    x_t: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor
    added: dict[str, Tensor]
    target: Tensor
    captions: Sequence[str] | None = None
    drift: Tensor | None = None

    def ask(self, unet: nn.Module, states: MutableMapping[str, Tensor] | None = None) -> Tensor:
        """Return a U-Net's answer, `[B, C, H, W]`, fp32; inner states that hooks put into `states` fit its rows."""
        return ask_by_prompt(unet, self.x_t, self.timesteps, self.prompt_embeds, self.added, self.captions, states)

    def rows(self, rows: Tensor) -> Question:
        """Return the question for some samples, int64 `[N]`."""
        added = {name: value[rows] for name, value in self.added.items()}
        return Question(self.x_t[rows], self.timesteps[rows], self.prompt_embeds[rows], added, self.target[rows])

    def to(self, dtype: torch.dtype) -> Question:
        """Return the question with its floating tensors, the target aside, in another dtype."""
        added = {name: value.to(dtype) for name, value in self.added.items()}
        return Question(self.x_t.to(dtype), self.timesteps, self.prompt_embeds.to(dtype), added, self.target)


def squared_error(answer: Tensor, target: Tensor) -> Tensor:
    """Return each sample's mean squared error, `[B]`, reduced in fp32."""
    return (answer.float() - target.float()).square().flatten(1).mean(dim=1)


class Denoising:
    """Squared error of a student's `unet`, weighted over timesteps; the text encoders may be students too.

    Batches hold `latents [B, C, H, W]` (scaled, fp32), `time_ids [B, 6]` and the text: either `prompt_embeds` and
    `pooled_prompt_embeds`, or `input_ids` and `input_ids_2`, which are encoded here, by the student's own encoders
    where it has them. `keep`, bool `[B]`, is False where the condition is to be zeros. `loss_weight [B]` scales losses.

    Args:
        spec: Weighting.
        prediction_type: What the network predicts.
        schedule: The noise schedule.
        frozen: `text_encoder` and `text_encoder_2` where the student does not train them.
        before: Says what is to be predicted for samples that guard what there was; None leaves it to the data.

    Source: Ho et al. 2020, algorithm 1 (arXiv 2006.11239).
    """

    def __init__(
        self,
        spec: DenoisingSpec,
        prediction_type: PredictionType,
        schedule: NoiseSchedule,
        frozen: dict[str, nn.Module],
        before: ModelBefore | None = None,
    ) -> None:
        self.spec, self.schedule, self.frozen, self.before = spec, schedule, frozen, before
        self.prediction_type: PredictionType = prediction_type

    def to(self, device: torch.device) -> None:
        """Move the schedule and the frozen encoders."""
        self.schedule = self.schedule.to(device)
        for module in self.frozen.values():
            module.to(device)
        if self.before is not None:
            self.before.to(device)

    def __call__(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Loss:
        """Return the weighted loss; the part `mse` is the unweighted error, `text_drift` that of guarded captions."""
        question = self.question(student, batch, rng)
        if self.before is not None:
            question = self.before.answer(self, question, batch, rng)
        mse = squared_error(question.ask(student.get_submodule("unet")), question.target)
        losses = mse * self.weights(question.timesteps, batch)
        if question.drift is None:
            return Loss.from_samples(losses, {"mse": mse})
        # Captions have no timestep, so that its weight is none of theirs; that of their source is.
        drift = question.drift * batch.tensors.get("loss_weight", 1.0)
        return Loss.from_samples(losses + drift, {"mse": mse, "text_drift": question.drift})

    def decided(self, rng: PositionRng) -> Hashable | None:
        """Return what Python decides of a batch's computation: nothing, unless the model as it was is asked, too."""
        return "denoising" if self.before is None else None

    def question(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Question:
        """Draw timesteps and noise for a batch and encode its condition."""
        x0 = batch.tensors["latents"]
        timesteps = self._timesteps(rng)
        noise = rng.normal(x0.shape[1:], "noise")
        if self.spec.noise_offset:
            noise = noise + self.spec.noise_offset * rng.normal((x0.shape[1], 1, 1), "noise_offset")
        x_t = self.schedule.add_noise(x0, noise, timesteps)
        target = training_target(self.prediction_type, self.schedule, x0, noise, timesteps)
        captions = batch.captions if "prompt_embeds" in batch.tensors else None
        return Question(x_t, timesteps, *self.condition(student, batch), target, captions)

    def weights(self, timesteps: Tensor, batch: Batch | None = None) -> Tensor:
        """Return each sample's loss weight, `[B]`: that of its timestep times the batch's own `loss_weight`."""
        weights = torch.ones_like(timesteps, dtype=torch.float32)
        if self.spec.min_snr_gamma is not None:
            weights = min_snr_weight(self.schedule.snr(timesteps), self.spec.min_snr_gamma, self.prediction_type)
        own = None if batch is None else batch.tensors.get("loss_weight")
        return weights if own is None else weights * own

    def _timesteps(self, rng: PositionRng) -> Tensor:
        """Draw int64 `[B]`, those of the spec's range `multiplier` times as often as others."""
        number, bias = self.schedule.num_timesteps, self.spec.timestep_bias
        if bias is None:
            return rng.integers(0, number, "timestep")
        shares = torch.ones(number, dtype=torch.float64)
        shares[bias.begin : bias.end] *= bias.multiplier
        ends = (shares.cumsum(0) / shares.sum()).to(rng.device)
        return torch.searchsorted(ends, rng.uniform("timestep").double(), right=True).clamp(max=number - 1)

    def condition(self, student: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `prompt_embeds` and the added condition (`text_embeds`, `time_ids`)."""
        tensors = batch.tensors
        if "prompt_embeds" in tensors:
            embeds, pooled = tensors["prompt_embeds"], tensors["pooled_prompt_embeds"]
        else:
            encoders = (self._encoder(student, "text_encoder"), self._encoder(student, "text_encoder_2"))
            embeds, pooled = encode_tokens(*encoders, tensors["input_ids"], tensors["input_ids_2"])
        if "keep" in tensors:
            embeds, pooled = silence(embeds, pooled, tensors["keep"])
        return embeds, {"text_embeds": pooled, "time_ids": tensors["time_ids"].to(pooled.dtype)}

    def _encoder(self, student: nn.Module, name: str) -> nn.Module:
        return getattr(student, name, None) or self.frozen[name]
