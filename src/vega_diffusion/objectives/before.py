"""The model before training, asked what its successor must go on answering: the target of samples that guard it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.parameterisation import PredictionType, convert
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.denoising import Denoising, Question

POOLED = "text_embeds"


class ModelBefore(nn.Module):
    """Frozen copies of what a run trains, as they were.

    Args:
        components: The components before anything was added to them.
        by_adapters: They learn by adapters alone: the copies hold the very same weights and take no memory.
        prediction_type: What the U-Net predicts.
        asked: Of which of the interleaved sources it gives the targets.
        text_weights: Of each source, what its captions' drift weighs; zeros unless given.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        by_adapters: bool,
        prediction_type: PredictionType,
        asked: Sequence[bool] = (False, True),
        text_weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        for name, module in components.items():
            # What is in the memo is not copied.
            shared = {id(one): one for one in (*module.parameters(), *module.buffers())} if by_adapters else {}
            self.add_module(name, copy.deepcopy(module, shared).requires_grad_(False))
        self.prediction_type: PredictionType = prediction_type
        self.asked = tuple(asked)
        self.text_weights = tuple(text_weights) or (0.0,) * len(self.asked)
        self.eval()

    def answer(self, task: Denoising, question: Question, batch: Batch, rng: PositionRng) -> Question:
        """Return the question with this model's answers as the targets of the sources that it guards.

        Where text encoders learn, it reads their captions by its own; where captions' drift weighs, it says how far
        theirs are from its own.

        Source: Li and Hoiem 2016, section 3 (arXiv 1606.09282).
        """
        numbers = [row for row, position in enumerate(rng.positions) if self.asked[position % len(self.asked)]]
        if not numbers:
            return question
        rows = torch.tensor(numbers, device=question.target.device)
        guarded = question.rows(rows)
        with torch.no_grad():
            tensors = {name: value[rows] for name, value in batch.tensors.items()}
            text = task.condition(self, Batch([batch.sample_ids[row] for row in numbers], tensors))
            told = self._told(task, replace(guarded, prompt_embeds=text[0], added=text[1]))
            target: Tensor = question.target.index_copy(0, rows, told.to(question.target))
        question = replace(question, target=target)
        if not any(self.text_weights):
            return question
        weights = [self.text_weights[rng.positions[row] % len(self.asked)] for row in numbers]
        drift = _distance(guarded.prompt_embeds, text[0]) + _distance(guarded.added[POOLED], text[1][POOLED])
        own = drift * torch.tensor(weights, device=drift.device)
        return replace(question, drift=drift.new_zeros(len(question.target)).index_copy(0, rows, own))

    def _told(self, task: Denoising, asked: Question) -> Tensor:
        """Return the answer in what the task predicts, `[N, C, H, W]`, fp32."""
        unet = self.get_submodule("unet")
        told = asked.to(next(unet.parameters()).dtype).ask(unet)
        return convert(
            told, self.prediction_type, task.prediction_type, task.schedule, asked.x_t.float(), asked.timesteps
        )


def _distance(own: Tensor, told: Tensor) -> Tensor:
    """Return each sample's squared distance as a share of what was told, `[N]`, fp32; 0 where both are zeros."""
    own, told = own.float().flatten(1), told.float().flatten(1)
    return (own - told).square().sum(1) / told.square().sum(1).clamp_min(1e-12)
