"""The case `text-binding` at tiny size, on the embedded model's own text encoders."""

from __future__ import annotations

import torch

from vega_diffusion.benchmarks import text_binding as case
from vega_diffusion.data.scenes.targets import mention_sizes


def test_a_linear_map_reads_what_is_there_and_nothing_else() -> None:
    torch.manual_seed(0)
    classes = torch.randint(0, 4, (600,))
    told, hidden = torch.randn(600, 8), torch.randn(600, 8)
    told[torch.arange(600), classes] += 8
    assert case.probe(told, classes) == 1
    assert case.probe(hidden, classes) < 0.45


def test_captions_of_two_things_are_read_at_both_names() -> None:
    states, targets, first_named = case.read_captions("vega-mini", 40)
    assert states.shape == (len(states), 2, 192)
    assert 30 <= len(states) <= 40
    assert (first_named.sum(dim=1) == 1).all()
    assert 0 < int(first_named[:, 0].sum()) <= len(states)
    assert all(targets[slot].max() < mention_sizes()[slot] for slot in ("noun", "colour"))
    assert (targets["noun"][:, 0] != targets["noun"][:, 1]).all()
    assert (targets["colour"][:, 0] != targets["colour"][:, 1]).all()


def test_measure_reports_both_names_and_the_other_one() -> None:
    found = case.measure(num_captions=300)
    named = {f"{name}_{slot}_accuracy" for name in ("first", "second", "other") for slot in ("noun", "colour")}
    assert named <= found.summary.keys()
    assert found.summary["second_colour_accuracy"] == found.bars[0].measured
