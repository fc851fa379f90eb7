"""The distillation loss: closed forms, published sums, teachers by step, share and caption, conversion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from vega_diffusion.data.batches import Batch
from vega_diffusion.diffusion.parameterisation import PredictionType, convert
from vega_diffusion.diffusion.randomness import PositionRng
from vega_diffusion.diffusion.weighting import min_snr_weight
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.models.attention import use_training_attention
from vega_diffusion.models.surgery import carve
from vega_diffusion.models.unet import build_unet
from vega_diffusion.objectives.build import build_denoising, build_objective
from vega_diffusion.objectives.distillation import Distillation
from vega_diffusion.objectives.features import feature_pairs
from vega_diffusion.objectives.teachers import Teacher, Teachers
from vega_diffusion.specs.distillation import PUBLISHED_LOSSES, DistillationSpec, TeacherSpec
from vega_diffusion.specs.known_maps import find_map
from vega_diffusion.specs.objective import DenoisingSpec
from vega_diffusion.specs.presets import MINI_SDXL, VEGA_MINI

WIDTHS = {"block_out_channels": (8, 16, 32), "norm_num_groups": 4}
LARGE = MINI_SDXL.unet.model_copy(update=WIDTHS)
SMALL = VEGA_MINI.unet.model_copy(update=WIDTHS)
MODEL = VEGA_MINI.model_copy(update={"unet": SMALL})
LAYERS = find_map("even", SMALL, LARGE)
LEVELS = ("block", "module", "transformer_block", "self_attention")


def batch(captions: list[str] | None = None) -> Batch:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "latents": torch.randn(4, 4, 8, 8, generator=draw),
        "time_ids": torch.full((4, 6), 64.0),
        "prompt_embeds": torch.randn(4, 5, 192, generator=draw),
        "pooled_prompt_embeds": torch.randn(4, 128, generator=draw),
    }
    return Batch(list("abcd"), tensors, captions)


def unet(spec: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_unet(spec).eval()


def settings(**changes: Any) -> dict[str, Any]:
    return {"kind": "distillation", "teachers": [{"name": "one", "base": "mini-sdxl", "map": "even"}]} | changes


def spec_of(**changes: Any) -> DistillationSpec:
    return DistillationSpec.from_dict(settings(**changes))


def objective(spec: DistillationSpec, networks: list[Any], kinds: Any = None, batch_size: int = 4) -> Distillation:
    pairs = () if spec.feature_level is None else feature_pairs(spec.feature_level, LAYERS)
    if type(networks[0]).__name__ == "UNet2DConditionModel" and networks[0].config.mid_block_type == "UNetMidBlock2D":
        pairs = tuple(pair._replace(teacher=pair.student) for pair in pairs)  # a teacher of the student's own shape
    teachers = [
        Teacher(one, kind, pairs, lambda network=network: network, lambda: unet(LARGE, 2).to("meta"))
        for one, network, kind in zip(
            spec.teachers, networks, kinds or cast("list[PredictionType]", ["epsilon"] * len(networks)), strict=True
        )
    ]
    found = build_objective(spec, MODEL, {}, teachers, batch_size)
    assert isinstance(found, Distillation)
    return found


def loss_of(spec: DistillationSpec, student: nn.Module, *networks: nn.Module, first: int = 40, **more: Any) -> Any:
    made = objective(spec, list(networks), **more)
    return made(nn.ModuleDict({"unet": student}), batch(), PositionRng(3, range(first, first + 4)))


@pytest.mark.parametrize("scale", ["relative", "plain"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_student_equal_to_its_teacher_has_the_task_loss_alone(level, scale):
    student, teacher = unet(SMALL, 1), unet(SMALL, 1)
    loss = loss_of(spec_of(feature_level=level, feature_scale=scale, mask_above=2.0), student, teacher)
    assert loss.parts["output"] == loss.parts["feature"] == 0
    plain = build_denoising(DenoisingSpec(), MODEL, {})
    task = plain(nn.ModuleDict({"unet": student}), batch(), PositionRng(3, range(40, 44)))
    torch.testing.assert_close(loss.per_sample, task.per_sample)
    assert loss.parts["mse"] > 0


def test_features_of_samples_that_share_a_prompt_are_compared_with_their_own():
    student, data = unet(SMALL, 1), batch(["a", "b", "a", "b"])
    use_training_attention(student)  # which reads each prompt once, in another order than the samples'
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        data.tensors[name] = data.tensors[name][[0, 1, 0, 1]]
    made = objective(spec_of(feature_scale="relative"), [unet(SMALL, 1)])
    loss = made(nn.ModuleDict({"unet": student}), data, PositionRng(3, range(40, 44)))
    assert loss.parts["output"] < 1e-6
    assert loss.parts["feature"] < 1e-6


@pytest.mark.parametrize("weights", [(1.0, 0.5, 0.5), (0.0, 2.0, 0.0), (0.3, 0.0, 0.7)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_sum_as_declared_and_every_term_has_the_same_weight_over_timesteps(weights, reduction):
    task, output, feature = weights
    level = "module" if feature else None
    given = {"task_weight": task, "output_weight": output, "feature_weight": feature}
    spec = spec_of(**given, feature_level=level, feature_reduction=reduction)
    student, teacher = unet(SMALL, 1), unet(LARGE, 2)
    rows = []
    for position in range(40, 44):
        made = objective(spec, [teacher])
        one = batch()
        part = Batch(["x"], {name: value[position - 40 : position - 39] for name, value in one.tensors.items()})
        rng = PositionRng(3, [position])
        loss = made(nn.ModuleDict({"unet": student}), part, rng)
        parts = {name: value.double() for name, value in loss.parts.items()}
        terms = [value for name, value in parts.items() if name.startswith("feature/")]
        assert len(terms) == (26 if feature else 0)
        mean = sum(terms) / (len(terms) if reduction == "mean" else 1) if terms else torch.tensor(0.0)
        assert parts.get("feature", torch.tensor(0.0)).item() == pytest.approx(float(mean), rel=1e-5)
        timesteps = rng.integers(0, 1000, "timestep")
        weight = min_snr_weight(made.denoising.schedule.snr(timesteps), 5.0, "epsilon").double()
        rows.append(weight * (task * parts["mse"] + output * parts["output"] + feature * mean))
    together = loss_of(spec, student, teacher)
    torch.testing.assert_close(together.per_sample.double(), torch.cat(rows), rtol=1e-3, atol=1e-6)


def test_segminds_sum_is_26_plain_errors():
    spec = spec_of(published="segmind")
    assert (spec.task_weight, spec.output_weight, spec.feature_weight) == (1.0, 0.5, 0.5)
    student, teacher = unet(SMALL, 1), unet(LARGE, 2)
    loss = loss_of(spec, student, teacher)
    states: list[dict[str, Tensor]] = []
    for network in (student, teacher):
        seen: dict[str, Tensor] = {}
        for name, module in network.named_modules():
            if type(module).__name__ in (
                "ResnetBlock2D",
                "Transformer2DModel",
                "UNetMidBlock2D",
                "UNetMidBlock2DCrossAttn",
            ):
                module.register_forward_hook(
                    lambda _, __, out, name=name, seen=seen: seen.__setitem__(
                        name, out if isinstance(out, Tensor) else out[0]
                    )
                )
        made = build_denoising(DenoisingSpec(min_snr_gamma=None), MODEL, {})
        question = made.question(nn.ModuleDict({"unet": network}), batch(), PositionRng(3, range(40, 44)))
        with torch.no_grad():
            seen["out"], seen["target"] = question.ask(network), question.target
        states.append(seen)
    own, theirs = states
    shared = [name for name in own if not name.startswith("mid_block.") and name not in ("out", "target")]
    assert len(shared) == 26
    errors = sum((own[name] - theirs[name]).square().mean() for name in shared)
    expected = (
        (own["out"] - own["target"]).square().mean() + 0.5 * (own["out"] - theirs["out"]).square().mean() + 0.5 * errors
    )
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-5)


def test_relative_features_do_not_depend_on_scale_and_masks_leave_out_what_is_far():
    made = objective(spec_of(), [unet(LARGE, 1)])
    draw = torch.Generator().manual_seed(1)
    own, wanted = torch.randn(3, 50, generator=draw), torch.randn(3, 50, generator=draw)
    torch.testing.assert_close(made._feature(own, wanted), made._feature(own * 512, wanted * 512))
    torch.testing.assert_close(made._feature(torch.zeros_like(wanted), wanted), torch.ones(3))
    masked = objective(spec_of(mask_above=4.0), [unet(LARGE, 1)])
    spiked = wanted.clone()
    spiked[:, 7] = 1e4
    rest = torch.arange(50) != 7
    torch.testing.assert_close(masked._feature(own, spiked), made._feature(own[:, rest], wanted[:, rest]))
    assert (made._feature(own, spiked) > 0.9).all()
    torch.testing.assert_close(masked._feature(own * 0 + 1, own * 0 + 1), torch.zeros(3))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_a_teacher_of_another_parameterisation_is_converted(kind):
    """A teacher that says the same in other words gives the same loss."""
    student, teacher = unet(SMALL, 1), unet(LARGE, 2)

    class Translated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = teacher

        def forward(self, x_t, timesteps, **more):
            answer = self.unet(x_t, timesteps, **more)
            schedule = build_denoising(DenoisingSpec(), MODEL, {}).schedule
            answer.sample = convert(answer.sample, "epsilon", kind, schedule, x_t, timesteps)
            return answer

    spec = spec_of(feature_weight=0.0, feature_level=None)
    plain = loss_of(spec, student, teacher)
    translated = loss_of(spec, student, Translated(), kinds=[kind])
    torch.testing.assert_close(translated.per_sample, plain.per_sample, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(loss_of(spec, student, Translated()).per_sample, plain.per_sample, rtol=1e-2)


def test_only_the_student_learns_and_its_modules_all_do():
    student, teacher = unet(SMALL, 1), unet(LARGE, 2)
    teacher.requires_grad_(False)
    spec = spec_of(task_weight=0.0)
    loss_of(spec, student, teacher).total.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_carved_student_beats_one_with_weights_of_its_own():
    teacher = unet(LARGE, 2)
    carved, _ = carve(LAYERS, SMALL, LARGE, teacher.state_dict())
    terms = [loss_of(spec_of(), student, teacher).parts for student in (carved, unet(SMALL, 1))]
    assert terms[0]["feature"] < terms[1]["feature"]
    assert terms[0]["feature/down_blocks.0.resnets.0"] == 0  # nothing was removed before it


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for frugal in (False, True):
        student, teacher = unet(SMALL, 1).train(), unet(LARGE, 2)
        if frugal:
            student.enable_gradient_checkpointing()  # type: ignore[operator]
        loss_of(spec_of(), student, teacher).total.backward()
        gradients.append({name: parameter.grad for name, parameter in student.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


TEACHERS = [
    {"name": "general", "base": "mini-sdxl", "map": "even", "stop_step": 10},
    {"name": "expert", "base": "mini-sdxl", "map": "even", "start_step": 10, "share": 3.0},
    {"name": "second", "base": "mini-sdxl", "map": "even", "start_step": 10},
    {"name": "cats", "base": "mini-sdxl", "map": "even", "captions": r"\bcats?\b", "start_step": 20},
]


def assigned(position: int, captions: list[str] | None = None, batch_size: int = 4) -> dict[str, list[int]]:
    spec = spec_of(teachers=TEACHERS)
    teachers = Teachers([Teacher(one, "epsilon", (), nn.Identity, nn.Identity) for one in spec.teachers], batch_size)
    count = 4 if captions is None else len(captions)
    found = teachers.assign(captions, PositionRng(3, range(position, position + count)))
    return {spec.teachers[index].name: rows for index, rows in found.items()}


def test_teachers_come_and_go_at_declared_steps():
    spec = spec_of(teachers=TEACHERS)
    assert spec.swaps() == {10: "expert, second", 20: "expert, second, cats"}
    assert assigned(0) == assigned(36) == {"general": [0, 1, 2, 3]}
    assert set(assigned(40, captions=[""] * 4)) == {"expert", "second"}


def test_a_mixture_draws_by_share_and_by_position():
    rows = assigned(40, captions=[""] * 400, batch_size=400 * 10)
    assert rows == {"general": list(range(400))}
    teachers = spec_of(teachers=[TEACHERS[1] | {"start_step": 0}, TEACHERS[2] | {"start_step": 0}]).teachers
    room = Teachers([Teacher(one, "epsilon", (), nn.Identity, nn.Identity) for one in teachers], 1000)
    found = room.assign(None, PositionRng(3, range(1000)))
    assert 0.70 < len(found[0]) / 1000 < 0.80
    assert sorted([*found[0], *found[1]]) == list(range(1000))
    half = room.assign(None, PositionRng(3, range(500, 1000)))
    assert [row + 500 for row in half[0]] == [row for row in found[0] if row >= 500]


def test_captions_route_samples_and_nobody_else_gets_them():
    captions = ["a cat", "two cats", "a dog", "a caterpillar", ""]
    rows = assigned(80, captions=captions)
    assert rows["cats"] == [0, 1]
    assert sorted(rows["expert"] + rows["second"]) == [2, 3, 4]
    with pytest.raises(VegaError, match="these samples have no captions"):
        assigned(80)


def test_teachers_are_loaded_when_needed_and_let_go():
    loads: list[str] = []
    spec = spec_of(teachers=TEACHERS[:3])

    def load(name: str) -> nn.Module:
        loads.append(name)
        return unet(LARGE, 2)

    pairs = feature_pairs("module", LAYERS)
    teachers = [Teacher(one, "epsilon", pairs, lambda one=one: load(one.name), nn.Identity) for one in spec.teachers]
    made = build_objective(spec, MODEL, {}, teachers, 4)
    assert isinstance(made, Distillation)
    student = nn.ModuleDict({"unet": unet(SMALL, 1)})
    for first in (0, 4, 40, 44):
        loss = made(student, batch(), PositionRng(3, range(first, first + 4)))
    assert loads[0] == "general"
    assert loads.count("general") == 1
    assert 0 not in made.teachers._loaded
    shares = [float(value) for name, value in loss.parts.items() if name.startswith("teacher/")]
    assert len(shares) == 2
    assert sum(shares) == 1.0


def test_a_step_can_be_recorded_while_one_teacher_is_asked():
    made = objective(spec_of(teachers=TEACHERS), [unet(LARGE, 2)] * len(TEACHERS))
    alone, later = PositionRng(3, range(4)), PositionRng(3, range(36, 40))
    assert made.decided(alone) == made.decided(later) is not None
    assert made.decided(PositionRng(3, range(40, 44))) is None, "who teaches a sample is drawn for each"
    recalling = objective(spec_of(), [unet(LARGE, 2)])
    recalling.teachers.teachers = (replace(recalling.teachers.teachers[0], recall=lambda rows: torch.zeros(0)),)
    assert recalling.decided(alone) is None, "what is recalled comes from a file"


def test_a_mixed_batch_is_what_its_samples_are_alone():
    spec = spec_of(teachers=[{**TEACHERS[1], "start_step": 0}, {**TEACHERS[2], "start_step": 0, "share": 2.0}])
    student, networks = unet(SMALL, 1), [unet(LARGE, 2), unet(LARGE, 5)]
    made = objective(spec, networks, batch_size=100)
    data = batch()
    together = made(nn.ModuleDict({"unet": student}), data, PositionRng(3, range(40, 44)))
    assert 0 < together.parts["teacher/expert"] < 1
    for row in range(4):
        part = Batch(["x"], {name: value[row : row + 1] for name, value in data.tensors.items()})
        alone = made(nn.ModuleDict({"unet": student}), part, PositionRng(3, [40 + row]))
        torch.testing.assert_close(alone.per_sample[0], together.per_sample[row], rtol=1e-3, atol=1e-5)
        assert alone.parts.keys() == together.parts.keys()  # processes average the same names


def test_a_teacher_in_half_precision_is_asked_in_it():
    spec = spec_of()
    student, teacher = unet(SMALL, 1), unet(LARGE, 2)
    exact = loss_of(spec, student, teacher)
    half = nn.Module.to(unet(LARGE, 2), torch.bfloat16)
    found = loss_of(spec, student, half)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(exact.total.item(), rel=0.1)
    assert found.total.item() != exact.total.item()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teachers": []}, "teachers"),
        ({"feature_level": None}, "objective.feature_level"),
        ({"feature_weight": 0.0}, "objective.feature_level"),
        ({"feature_weight": 0.0, "feature_level": None, "mask_above": 3.0}, "objective.mask_above"),
        ({"feature_weight": 0.0, "feature_level": None, "output_weight": 0.0}, "objective.output_weight"),
        (
            {"published": "segmind", "feature_weight": 0.3},
            "objective.feature_weight: 0.3 .* 0.5 with published 'segmind'",
        ),
        ({"published": "nobody"}, "published"),
        ({"teachers": [TEACHERS[0], TEACHERS[0]]}, "names that differ"),
        ({"teachers": [TEACHERS[0] | {"stop_step": 3, "start_step": 3}]}, "teachers.stop_step"),
        ({"teachers": [TEACHERS[3] | {"captions": "("}]}, "teachers.captions: '\\(' .* a regular expression"),
        ({"teachers": [TEACHERS[3] | {"share": 2.0}]}, "teachers.share"),
        ({"teachers": [TEACHERS[0] | {"compile": True}]}, "teachers.general.compile"),
        ({"teachers": [TEACHERS[0] | {"lr": 1.0}]}, "only the known keys"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(changes, match):
    with pytest.raises(VegaError, match=match):
        spec_of(**changes)


def test_published_losses_are_complete_and_round_trip():
    for name, fields in PUBLISHED_LOSSES.items():
        spec = spec_of(published=name)
        assert {field: getattr(spec, field) for field in fields} == fields
        assert DistillationSpec.from_json(spec.to_json()) == spec
        assert DistillationSpec.model_fields.keys() - fields.keys() == {
            "kind",
            "published",
            "mask_above",
            "fixed_samples",
            "teachers",
        }


def test_somebody_must_teach_at_every_step():
    spec_of(teachers=TEACHERS).check_steps(30)
    with pytest.raises(InvalidValue, match="nobody at step 10"):
        spec_of(teachers=[TEACHERS[0]]).check_steps(11)
    with pytest.raises(InvalidValue, match="nobody at step 0"):
        spec_of(teachers=[TEACHERS[1]]).check_steps(30)
    with pytest.raises(InvalidValue, match="nobody at step 0"):
        spec_of(teachers=[TEACHERS[3] | {"start_step": 0}]).check_steps(30)
    with pytest.raises(InvalidValue, match="teachers.expert.start_step"):
        spec_of(teachers=TEACHERS).check_steps(10)
    spec_of(teachers=[TEACHERS[0]]).check_steps(10)
    assert TeacherSpec.from_dict(TEACHERS[0]).teaches_at(9)
