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


class ModelBefore(nn.Module):
    """Frozen copies of what a run trains, as they were.

    Args:
        components: The components before anything was added to them.
        by_adapters: They learn by adapters alone: the copies hold the very same weights and take no memory.
        prediction_type: What the U-Net predicts.
        asked: Of which of the interleaved sources it gives the targets.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        by_adapters: bool,
        prediction_type: PredictionType,
        asked: Sequence[bool] = (False, True),
    ) -> None:
        super().__init__()
        for name, module in components.items():
            # What is in the memo is not copied.
            shared = {id(one): one for one in (*module.parameters(), *module.buffers())} if by_adapters else {}
            self.add_module(name, copy.deepcopy(module, shared).requires_grad_(False))
        self.prediction_type: PredictionType = prediction_type
        self.asked = tuple(asked)
        self.eval()

    @torch.no_grad()
    def answer(self, task: Denoising, question: Question, batch: Batch, rng: PositionRng) -> Question:
        """Return the question with this model's answers as the targets of the sources that it guards.

        Where text encoders learn, it reads their captions by its own.

        Source: Li and Hoiem 2016, section 3 (arXiv 1606.09282).
        """
        numbers = [row for row, position in enumerate(rng.positions) if self.asked[position % len(self.asked)]]
        if not numbers:
            return question
        rows = torch.tensor(numbers, device=question.target.device)
        tensors = {name: value[rows] for name, value in batch.tensors.items()}
        some = Batch([batch.sample_ids[row] for row in numbers], tensors)
        unet = self.get_submodule("unet")
        text = task.condition(self, some)
        asked = Question(question.x_t[rows], question.timesteps[rows], *text, question.target[rows])
        told = asked.to(next(unet.parameters()).dtype).ask(unet)
        told = convert(
            told, self.prediction_type, task.prediction_type, task.schedule, asked.x_t.float(), asked.timesteps
        )
        target: Tensor = question.target.index_copy(0, rows, told.to(question.target))
        return replace(question, target=target)
