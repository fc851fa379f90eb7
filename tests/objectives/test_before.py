"""The model before training as a target: nothing to learn at first, drift called back, weights shared by adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.models.lora import add_lora, is_adapter
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.before import ModelBefore
from vega_diffusion.objectives.build import build_denoising
from vega_diffusion.specs.lora import LoraSpec
from vega_diffusion.specs.objective import DenoisingSpec
from vega_diffusion.specs.presets import preset

SPEC = preset("vega-mini")
POSITIONS = range(2, 6)  # rows 1 and 3 are the second source's


def components() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    assert SPEC.text_encoder_2 is not None
    return {
        "unet": build_unet(SPEC.unet),
        "text_encoder": build_text_encoder(SPEC.text_encoder),
        "text_encoder_2": build_text_encoder(SPEC.text_encoder_2),
    }


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 4000, (4, 77), generator=generator)
    tensors = {
        "latents": torch.randn(4, 4, 8, 8, generator=generator),
        "time_ids": torch.full((4, 6), 128.0),
        "keep": torch.tensor([True, True, False, True]),
        "input_ids": ids,
        "input_ids_2": ids,
    }
    return Batch(list("abcd"), tensors)


def errors(student: nn.Module, before: ModelBefore | None) -> list[float]:
    task = build_denoising(DenoisingSpec(min_snr_gamma=None), SPEC, {}, before)
    with torch.no_grad():
        return task(student, batch(), PositionRng(3, POSITIONS)).per_sample.tolist()


def test_at_first_there_is_nothing_to_learn_from_the_second_source():
    parts = components()
    student = nn.ModuleDict(parts).eval()
    alone = errors(student, None)
    guarded = errors(student, ModelBefore(parts, False, "epsilon"))
    assert [guarded[0], guarded[2]] == [alone[0], alone[2]]
    assert max(guarded[1], guarded[3]) < 1e-9  # batches of two and of four differ by rounding
    assert min(alone) > 0.1


@pytest.mark.parametrize("name", ["unet", "text_encoder", "text_encoder_2"])
def test_drift_of_any_part_is_an_error_whose_gradient_leads_back(name: str):
    parts = components()
    student = nn.ModuleDict(parts).eval()
    before = ModelBefore(parts, False, "epsilon")
    with torch.no_grad():
        for parameter in parts[name].parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    drifted = errors(student, before)
    assert min(drifted[1], drifted[3]) > 1e-6
    task = build_denoising(DenoisingSpec(min_snr_gamma=None), SPEC, {}, before)
    rows = batch()
    only = Batch(rows.sample_ids, rows.tensors | {"loss_weight": torch.tensor([0.0, 1.0, 0.0, 1.0])})
    task(student, only, PositionRng(3, POSITIONS)).total.backward()
    with torch.no_grad():
        for parameter in parts[name].parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-4 / parameter.grad.norm().clamp_min(1e-12) * parameter.grad)
    after = errors(student, before)
    assert after[1] + after[3] < drifted[1] + drifted[3]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in before.parameters())


def test_captions_that_drift_weigh_by_themselves():
    parts = components()
    student, before = nn.ModuleDict(parts).eval(), ModelBefore(parts, False, "epsilon", text_weights=(0.0, 0.5))
    task = build_denoising(DenoisingSpec(min_snr_gamma=5.0), SPEC, {}, before)
    plain = build_denoising(DenoisingSpec(min_snr_gamma=5.0), SPEC, {}, ModelBefore(parts, False, "epsilon"))
    rows = batch()
    weighted = Batch(rows.sample_ids, rows.tensors | {"loss_weight": torch.tensor([1.0, 3.0, 1.0, 3.0])})
    assert task(student, weighted, PositionRng(3, POSITIONS)).parts["text_drift"].item() == pytest.approx(0.0, abs=1e-9)
    encoder: Any = parts["text_encoder"]
    embedding = encoder.get_input_embeddings().weight
    with torch.no_grad():
        embedding.add_(0.02 * torch.randn_like(embedding))
        old, new = task.condition(before, rows)[0], task.condition(student, rows)[0]
    share = (new - old).square().flatten(1).sum(1) / old.square().flatten(1).sum(1)
    guarded, pictures = (one(student, weighted, PositionRng(3, POSITIONS)) for one in (task, plain))
    # The mean over a batch, half of which is guarded; without a timestep's weight, with that of the source.
    assert guarded.parts["text_drift"].item() == pytest.approx(0.125 * (share[1] + share[3]).item(), rel=1e-5)
    assert "text_drift" not in pictures.parts
    gained = (guarded.per_sample - pictures.per_sample).tolist()
    assert gained == pytest.approx([0.0, 1.5 * share[1].item(), 0.0, 1.5 * share[3].item()], rel=1e-4, abs=1e-6)
    (of_text,) = torch.autograd.grad(guarded.total - pictures.total, [embedding])
    assert of_text.norm() > 0


def test_captions_left_out_do_not_drift():
    parts = components()
    student, before = nn.ModuleDict(parts).eval(), ModelBefore(parts, False, "epsilon", text_weights=(0.0, 1.0))
    task = build_denoising(DenoisingSpec(min_snr_gamma=None), SPEC, {}, before)
    with torch.no_grad():
        for parameter in parts["text_encoder_2"].parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))

    def drift(keep: list[bool]) -> float:
        rows = batch()
        some = Batch(rows.sample_ids, rows.tensors | {"keep": torch.tensor(keep)})
        return task(student, some, PositionRng(3, POSITIONS)).parts["text_drift"].item()

    assert drift([True, False, True, False]) == 0.0
    assert drift([True, True, True, True]) > drift([False, True, False, False]) > 1e-6


def test_below_adapters_the_weights_are_the_students_own():
    parts = components()
    before = ModelBefore(parts, True, "epsilon")
    for module in parts.values():
        add_lora(module, LoraSpec(rank=4), 0)
    own = {id(p) for module in parts.values() for name, p in module.named_parameters() if not is_adapter(name)}
    assert {id(p) for p in before.parameters()} == own
    assert not any(is_adapter(name) for name, _ in before.named_parameters())
    student = nn.ModuleDict(parts).eval()
    assert max(errors(student, before)[1::2]) < 1e-9
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.1)
    assert min(errors(student, before)[1::2]) > 1e-6  # adapters act in the student and not in the model before


def test_answers_come_in_what_the_student_is_asked_to_predict():
    parts = components()
    before = ModelBefore(parts, False, "epsilon")
    student = nn.ModuleDict(parts).eval()
    task = build_denoising(DenoisingSpec(min_snr_gamma=None, prediction_type="sample"), SPEC, {}, before)
    rng, rows = PositionRng(3, POSITIONS), batch()
    question = before.answer(task, task.question(student, rows, rng), rows, rng)
    told = question.ask(student.get_submodule("unet"))
    # What is predicted is noise: the clean latents that it implies are the target.
    signal = task.schedule.alphas_cumprod[question.timesteps].view(-1, 1, 1, 1)
    clean = (question.x_t - (1 - signal).sqrt() * told) / signal.sqrt()
    torch.testing.assert_close(question.target[1::2], clean[1::2], rtol=1e-3, atol=1e-4)
