"""Distillation: a student learns from the data, from its teachers' predictions and from their inner states."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.parameterisation import convert
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.objectives.denoising import Denoising, Question, squared_error
from vega_diffusion.objectives.features import captured
from vega_diffusion.objectives.protocol import Loss
from vega_diffusion.objectives.teachers import Teacher, Teachers
from vega_diffusion.specs.distillation import DistillationSpec


class Distillation:
    """L = w(t) (a task + b output + c feature), every error reduced in fp32, every term logged.

    task is the error against the data, output that against the teacher's prediction in the student's
    parameterisation, feature the mean (or sum) over pairs of modules of the error of the student's state. The weight
    over timesteps is on all of them: without it the teacher's terms would outweigh the data where noise is low.

    Args:
        spec: Weights and the level of features.
        denoising: The task: draws questions, weighs timesteps.
        teachers: Who teaches.
        batch_size: Samples of one optimizer step.

    Source: Kim et al. 2023, equations 3 to 5 (arXiv 2305.15798); relative features after Zhang et al. 2024,
    section 3.3 (arXiv 2404.11098); masks after Fang et al. 2024, section 4.4 (arXiv 2412.01199).
    """

    def __init__(
        self, spec: DistillationSpec, denoising: Denoising, teachers: Sequence[Teacher], batch_size: int
    ) -> None:
        self.spec, self.denoising = spec, denoising
        self.teachers = Teachers(teachers, batch_size)

    def to(self, device: torch.device) -> None:
        """Move schedule, frozen encoders and the teachers that are loaded."""
        self.denoising.to(device)
        self.teachers.to(device)

    def decided(self, rng: PositionRng) -> Hashable | None:
        """Return who teaches a batch's samples, where it is one teacher for all of them and is asked anew."""
        active = self.teachers.active(rng)
        one = len(active) == 1 and self.teachers.teachers[active[0]].recall is None
        return active[0] if one else None

    def __call__(self, student: nn.Module, batch: Batch, rng: PositionRng) -> Loss:
        """Return the weighted loss; parts: `mse`, `output`, `feature`, `feature/MODULE`, `teacher/NAME` (a share)."""
        question = self.denoising.question(student, batch, rng)
        assigned = self.teachers.assign(batch.captions, rng)
        names = [pair.student for index in assigned for pair in self.teachers.teachers[index].pairs]
        unet = student.get_submodule("unet")
        with captured(unet, names) as states:
            answer = question.ask(unet, states)
        # Every term of every active teacher is there in every batch: processes average the same names.
        terms: dict[str, Tensor] = {"mse": squared_error(answer, question.target)}
        for index, rows in assigned.items():
            found = self._compare(index, question, rows, answer, states, rng)
            found[f"teacher/{self.teachers.teachers[index].spec.name}"] = torch.ones(len(rows), device=answer.device)
            if len(rows) == len(answer):  # one teacher for all of them: no other has terms of the same names
                terms |= found
                continue
            where = torch.tensor(rows, dtype=torch.int64, device=answer.device)
            for name, values in found.items():
                terms[name] = terms.get(name, torch.zeros_like(terms["mse"])).index_add(0, where, values)
        spec = self.spec
        total = spec.task_weight * terms["mse"] + spec.output_weight * terms["output"]
        if "feature" in terms:
            total = total + spec.feature_weight * terms["feature"]
        return Loss.from_samples(total * self.denoising.weights(question.timesteps, batch), terms)

    def _compare(
        self,
        index: int,
        question: Question,
        rows: list[int],
        answer: Tensor,
        states: dict[str, Tensor],
        rng: PositionRng,
    ) -> dict[str, Tensor]:
        """Return the per-sample errors `[len(rows)]` of the samples that one teacher teaches."""
        teacher = self.teachers.teachers[index]
        if not rows:
            return self._nothing(teacher, answer)
        everything = len(rows) == len(answer)
        asked = question if everything else question.rows(torch.tensor(rows, device=answer.device))
        if teacher.recall is not None:
            taught, wanted = teacher.recall([rng.positions[row] for row in rows])
            taught, wanted = taught.to(answer), {name: state.to(answer.device) for name, state in wanted.items()}
        else:
            unet = self.teachers.unet(index)
            with torch.no_grad(), captured(unet, [pair.teacher for pair in teacher.pairs]) as wanted:
                taught = asked.to(next(unet.parameters()).dtype).ask(unet)
        task = self.denoising
        taught = convert(
            taught, teacher.prediction_type, task.prediction_type, task.schedule, asked.x_t.float(), asked.timesteps
        )
        own = answer if everything else answer[rows]
        terms = {"output": squared_error(own, taught)}
        features = {
            pair.student: self._feature(
                states[pair.student] if everything else states[pair.student][rows], wanted[pair.teacher]
            )
            for pair in teacher.pairs
        }
        if features:
            stacked = torch.stack(list(features.values()))
            terms["feature"] = stacked.sum(0) if self.spec.feature_reduction == "sum" else stacked.mean(0)
        return terms | {f"feature/{name}": value.detach() for name, value in features.items()}

    def _nothing(self, teacher: Teacher, answer: Tensor) -> dict[str, Tensor]:
        """Return the terms of a teacher that teaches no sample of this batch."""
        names = [
            "output",
            *(["feature"] if teacher.pairs else []),
            *(f"feature/{pair.student}" for pair in teacher.pairs),
        ]
        return {name: answer.new_zeros(0) for name in names}

    def _feature(self, own: Tensor, wanted: Tensor) -> Tensor:
        """Return each sample's error of one state, `[B]`."""
        own, wanted = own.float().flatten(1), wanted.float().flatten(1)
        squares, error = wanted.square(), (own - wanted).square()
        if self.spec.mask_above is not None:
            limit = self.spec.mask_above**2 * squares.mean(1, keepdim=True)
            counted = (squares <= limit).float()
            error, squares = error * counted, squares * counted
            numbers = counted.sum(1)
        else:
            numbers = torch.full((len(own),), own.shape[1], dtype=torch.float32, device=own.device)
        if self.spec.feature_scale == "plain":
            return error.sum(1) / numbers
        return error.sum(1) / squares.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
