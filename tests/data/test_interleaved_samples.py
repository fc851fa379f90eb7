"""Prior preservation: samples in turn, a weighted mean that is the published loss, conditions of their own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from vega_diffusion.data.batches import Batch, SampleKey
from vega_diffusion.data.interleaved_samples import InterleavedSamples
from vega_diffusion.objectives.protocol import Loss


class Numbers:
    """A source whose sample p is the number p of a named row."""

    def __init__(self, name: str, shift: float) -> None:
        self.name, self.shift = name, shift

    def load(self, positions: Sequence[int]) -> Batch:
        values = torch.tensor([float(position) for position in positions]) + self.shift
        names = [f"{self.name}{position}" for position in positions]
        return Batch(names, {"latents": values, "time_ids": values * 2}, [f"caption {name}" for name in names])

    def keys(self, positions: Sequence[int]) -> list[SampleKey]:
        return [SampleKey(f"{self.name}{position}", (1,)) for position in positions]

    def fingerprint(self) -> str:
        return self.name


def test_samples_alternate_and_keep_what_is_theirs():
    pairs = InterleavedSamples([Numbers("a", 0.0), Numbers("b", 100.0)], [1.0, 0.5])
    batch = pairs.load(range(4, 10))
    assert batch.sample_ids == ["a2", "b2", "a3", "b3", "a4", "b4"]
    assert batch.captions == [f"caption {name}" for name in batch.sample_ids]
    assert batch.tensors["latents"].tolist() == [2, 102, 3, 103, 4, 104]
    assert batch.tensors["time_ids"].tolist() == [4, 204, 6, 206, 8, 208]
    assert [key.key.split()[0] for key in pairs.keys(range(4, 10))] == batch.sample_ids
    one = pairs.load([7])
    assert (one.sample_ids, one.tensors["loss_weight"].tolist()) == (["b3"], [1.0])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_mean_is_the_subjects_loss_and_a_share_of_the_classes(weight: float):
    batch = InterleavedSamples([Numbers("a", 0.0), Numbers("b", 100.0)], [1.0, weight]).load(range(8))
    losses = torch.rand(8, generator=torch.Generator().manual_seed(0))
    total = Loss.from_samples(losses * batch.tensors["loss_weight"]).total
    torch.testing.assert_close(total, losses[0::2].mean() + weight * losses[1::2].mean())
    halves = [
        Loss.from_samples((losses * batch.tensors["loss_weight"])[part]).total for part in (slice(4), slice(4, 8))
    ]
    torch.testing.assert_close(sum(halves) / 2, total)  # accumulation changes nothing


def test_another_weight_is_another_source():
    sources = {name: [Numbers("a", 0), Numbers(name, 0)] for name in "bc"}
    prints = {InterleavedSamples(pair, [1.0, w]).fingerprint() for pair in sources.values() for w in (0.5, 1.0)}
    assert len(prints) == 4


def test_keys_know_the_position_in_the_run_on_which_noise_depends():
    same = Numbers("a", 0.0)
    alone, two, three = (InterleavedSamples([same] * count, [1.0] * count) for count in (1, 2, 3))
    keys = [key.key for source in (alone, two, three) for key in source.keys(range(6))]
    assert len(set(keys)) == 18


def test_three_sources_take_turns():
    turns = InterleavedSamples([Numbers("a", 0.0), Numbers("b", 100.0), Numbers("c", 200.0)], [1.0, 0.5, 2.0])
    batch = turns.load(range(2, 8))
    assert batch.sample_ids == ["c0", "a1", "b1", "c1", "a2", "b2"]
    assert batch.tensors["latents"].tolist() == [200, 1, 101, 201, 2, 102]
    assert batch.tensors["loss_weight"].tolist() == [6.0, 3.0, 1.5, 6.0, 3.0, 1.5]
    assert [key.key.split()[0] for key in turns.keys(range(2, 8))] == batch.sample_ids
    losses = torch.rand(6, generator=torch.Generator().manual_seed(0))
    batch = turns.load(range(6))
    total = Loss.from_samples(losses * batch.tensors["loss_weight"]).total
    wanted = losses[0::3].mean() + 0.5 * losses[1::3].mean() + 2.0 * losses[2::3].mean()
    torch.testing.assert_close(total, wanted)
