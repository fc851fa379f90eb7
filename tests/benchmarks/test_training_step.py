"""The case `training-step` at tiny size."""

from __future__ import annotations

import pytest

from vega_diffusion.benchmarks.training_step import measure
from vega_diffusion.errors import InvalidValue


def test_three_cases_are_timed_in_turn() -> None:
    found = measure(batch=1)
    assert {name: len(values) for name, values in found.samples.items()} == {
        "fp32_cpu_s": 5,
        "bf16_torch_attention_cpu_s": 5,
        "bf16_cpu_s": 5,
    }
    assert all(value > 0 for values in found.samples.values() for value in values)


def test_a_model_with_one_text_encoder_is_refused() -> None:
    with pytest.raises(InvalidValue, match="two text encoders"):
        measure("sd-1.5", batch=1)
