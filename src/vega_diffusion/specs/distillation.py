"""Distillation as data: who teaches when and whom, and how the terms of the loss are weighed.

The loss is in `objectives/distillation.py`, which blocks belong together in `layer_map.py`.
"""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.optimizer import StrictSpec

FeatureLevel = Literal["block", "module", "transformer_block", "self_attention"]

# Published losses by name. segmind: SSD-1B's training code before its removal (module level, plain sum of 26 terms);
# bk-sdm: Kim et al. 2023, equation 5 (arXiv 2305.15798); koala: Lee et al. 2023, section 3.2 (arXiv 2312.04005).
PUBLISHED_LOSSES: dict[str, dict[str, Any]] = {
    "segmind": {
        "min_snr_gamma": None,
        "task_weight": 1.0,
        "output_weight": 0.5,
        "feature_weight": 0.5,
        "feature_level": "module",
        "feature_scale": "plain",
        "feature_reduction": "sum",
    },
    "bk-sdm": {
        "min_snr_gamma": None,
        "task_weight": 1.0,
        "output_weight": 1.0,
        "feature_weight": 1.0,
        "feature_level": "block",
        "feature_scale": "plain",
        "feature_reduction": "sum",
    },
    "koala": {
        "min_snr_gamma": None,
        "task_weight": 1.0,
        "output_weight": 1.0,
        "feature_weight": 1.0,
        "feature_level": "self_attention",
        "feature_scale": "plain",
        "feature_reduction": "sum",
    },
}


class TeacherSpec(StrictSpec):
    """A frozen U-Net that teaches, from one optimizer step to another, all samples or some.

    Args:
        name: What metrics and messages call it.
        base: A preset's name or a model folder: the architecture, and in a folder the weights too.
        weights: Where its U-Net's weights come from: a file or folder, a known model, or `run:NAME`.
        map: Which of its blocks the student's come from: a known map, a rule or a file (`specs/known_maps.py`).
        start_step: The first optimizer step at which it teaches.
        stop_step: The first one at which it no longer does; None teaches to the end.
        share: Its weight in the draw among the teachers that are there at a step (each sample draws one).
        captions: A regular expression; the samples whose caption it matches go to this teacher, and no others do.
        dtype: In which its weights are held; `run`: as the run computes, which is fp32 without `mixed_precision`.
        compile: Whether to compile it; only where no features are compared.
    """

    name: str
    base: str
    weights: str | None = None
    map: str
    start_step: NonNegativeInt = 0
    stop_step: PositiveInt | None = None
    share: PositiveFloat = 1.0
    captions: str | None = None
    dtype: Literal["run", "fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if self.stop_step is not None and self.stop_step <= self.start_step:
            raise InvalidValue(
                "teachers.stop_step", self.stop_step, f"more than start_step {self.start_step}", "raise it"
            )
        if self.captions is not None:
            if self.says("share"):
                raise InvalidValue("teachers.share", self.share, "nothing beside captions", "remove one of the two")
            try:
                re.compile(self.captions)
            except re.error as error:
                raise InvalidValue(
                    "teachers.captions", self.captions, f"a regular expression ({error})", "mend it"
                ) from error
        return self

    def teaches_at(self, step: int) -> bool:
        """Whether it teaches at an optimizer step."""
        return self.start_step <= step and (self.stop_step is None or step < self.stop_step)


class DistillationSpec(StrictSpec):
    """Task, output and feature loss of a student beside its teachers, all weighted over timesteps alike.

    `task_weight` is on the error against the data, `output_weight` on that against the teacher's prediction,
    `feature_weight` on the errors of inner states. `feature_level` says which states: of whole `block`s, of every
    resnet and attention layer (`module`), of every `transformer_block`, of every `self_attention`. `feature_scale`
    `relative` divides each error by the mean square of the teacher's state, so that no term outweighs others by its
    scale; `plain` does not. `feature_reduction` is over terms. `mask_above` leaves out numbers of the teacher's state
    that are further from zero than this many root mean squares. `published` fills in a published loss by name.

    With `fixed_samples` the run goes through that many samples again and again, each with its picture, timestep and
    noise, so that what teachers say of them, inner states among it, is computed once and kept on disk.
    """

    kind: Literal["distillation"] = "distillation"
    published: Literal["segmind", "bk-sdm", "koala"] | None = None
    min_snr_gamma: PositiveFloat | None = 5.0
    task_weight: NonNegativeFloat = 1.0
    output_weight: NonNegativeFloat = 1.0
    feature_weight: NonNegativeFloat = 0.1
    feature_level: FeatureLevel | None = "module"
    feature_scale: Literal["relative", "plain"] = "relative"
    feature_reduction: Literal["mean", "sum"] = "mean"
    mask_above: PositiveFloat | None = None
    fixed_samples: PositiveInt | None = None
    # Not strict: after a validator that comes before, pydantic takes JSON for Python, where a list is no tuple.
    teachers: tuple[TeacherSpec, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """Take over the fields of a published loss; another value beside it is a contradiction."""
        fields = PUBLISHED_LOSSES.get(str(data.get("published"))) if isinstance(data, dict) else None
        if fields is None:
            return data
        for name, value in fields.items():
            if name in data and data[name] != value:
                raise InvalidValue(
                    f"objective.{name}", data[name], f"{value!r} with published {data['published']!r}", "remove it"
                )
        return data | fields

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        if (self.feature_level is None) != (self.feature_weight == 0):
            raise InvalidValue(
                "objective.feature_level", self.feature_level, 'a level, or "none" with feature_weight 0', "change one"
            )
        if self.feature_level is None and self.mask_above is not None:
            raise InvalidValue("objective.mask_above", self.mask_above, "nothing without features", "remove it")
        if self.output_weight == 0 and self.feature_weight == 0:
            raise InvalidValue("objective.output_weight", 0, "more than 0 where no features are compared", "raise it")
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) != len(names):
            raise InvalidValue("objective.teachers", names, "names that differ", "rename one")
        for teacher in self.teachers:
            if teacher.compile and self.feature_level is not None:
                raise InvalidValue(
                    f"objective.teachers.{teacher.name}.compile",
                    True,
                    "false where features are compared",
                    "change one",
                )
        return self

    def check_steps(self, steps: int) -> None:
        """Check that somebody teaches every sample at every step of a run.

        Raises:
            InvalidValue: At some step nobody does, or a teacher comes after the end.
        """
        for teacher in self.teachers:
            if teacher.start_step >= steps:
                raise InvalidValue(
                    f"objective.teachers.{teacher.name}.start_step",
                    teacher.start_step,
                    f"less than steps {steps}",
                    "lower it",
                )
        for step in (0, *self.swaps()):
            general = [one for one in self.teachers if one.teaches_at(step) and one.captions is None]
            if step < steps and not general:
                raise InvalidValue(
                    "objective.teachers",
                    f"nobody at step {step}",
                    "a teacher for every sample at every step",
                    "add one",
                )

    def asked_about(self, teacher: TeacherSpec, steps: int, batch_size: int) -> range:
        """Return which of the fixed samples a teacher may be asked about in a run of so many steps."""
        assert self.fixed_samples is not None
        if self.fixed_samples < steps * batch_size:  # some come again, at other steps
            return range(self.fixed_samples)
        stop = steps if teacher.stop_step is None else min(teacher.stop_step, steps)
        return range(teacher.start_step * batch_size, stop * batch_size)

    def swaps(self) -> dict[int, str]:
        """Return the steps at which the teachers change, with the names of those who teach from there on."""
        bounds = {one.start_step for one in self.teachers} | {one.stop_step or 0 for one in self.teachers}
        return {
            step: ", ".join(one.name for one in self.teachers if one.teaches_at(step)) for step in sorted(bounds - {0})
        }
