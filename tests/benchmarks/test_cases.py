"""The cases measure what they say, at tiny size."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from vega_diffusion.benchmarks.__main__ import CASES
from vega_diffusion.benchmarks.autoencoder import psnr_db


def test_every_case_of_the_table_can_be_measured() -> None:
    assert len(CASES) == 26
    for module in CASES.values():
        assert callable(import_module(module).measure)


@pytest.mark.parametrize("error", [0.5, 0.1, 0.02])
def test_psnr_of_a_constant_error_is_the_closed_form(error: float) -> None:
    # In -1..1 the peak is 2, so an error of e everywhere gives 20 log10(2 / e).
    references = torch.zeros(2, 3, 8, 8)
    assert psnr_db(references + error, references).tolist() == pytest.approx([20 * math.log10(2 / error)] * 2, rel=1e-5)


def test_psnr_is_a_picture_s_own_and_what_a_file_cannot_hold_does_not_count() -> None:
    references = torch.ones(2, 3, 8, 8)
    images = torch.stack([references[0] + 5, references[1] - 2])
    first, second = psnr_db(images, references).tolist()
    assert first > 100
    assert second == pytest.approx(0.0, abs=1e-4)
