"""The case `reconstructions` at tiny size, on the committed sprites."""

from __future__ import annotations

import pytest
import torch

from vega_diffusion.benchmarks import reconstructions as case
from vega_diffusion.data.scenes.atlas import sample_folder


def test_a_file_holds_256_levels_between_minus_one_and_one() -> None:
    levels = case.as_file(torch.linspace(-1.5, 1.5, 4096))
    assert len(levels.unique()) == 256
    assert (levels.min(), levels.max()) == (-1, 1)


def test_originals_are_read_better_than_what_the_autoencoder_gives_back() -> None:
    found = case.measure(num_scenes=8, icons=str(sample_folder()))
    before, after = (float(found.summary[f"{name}_noun_accuracy"]) for name in ("original", "reconstruction"))
    assert before >= after > 0.5
    assert found.bars[0].measured == pytest.approx(after / before, abs=2e-4)
