"""Out of memory: fewer samples at once, the same step, and the same weights in the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from vega_diffusion.data.batches import Batch
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.memory import is_out_of_memory
from vega_diffusion.training.memory import smaller_micro_batch
from vega_diffusion.training.metrics import read_metrics


def weights(trainer):
    return {name: value.clone() for name, value in trainer.student.state_dict().items()}


class Heavy:
    """A source that asks the machine for more memory than it has whenever too many samples are wanted at once."""

    def __init__(self, source, most: int) -> None:
        self.source, self.most, self.loads = source, most, []

    def load(self, positions: Sequence[int]) -> Batch:
        self.loads.append(list(positions))
        if len(positions) > self.most:
            torch.empty(2**55, dtype=torch.uint8)
        return self.source.load(positions)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def test_the_run_goes_on_from_the_same_sample_with_less_at_once(make_trainer, recipe, pictures):
    said: list[str] = []
    source = Heavy(pictures(), 1)
    trainer = make_trainer(recipe(micro_batch_size=4, steps=2, lr_schedule={}), source=source, warn=said.append)
    assert trainer.train().step == 2
    assert said == [
        "step 0: out of memory with 4 samples at once; going on with 2 at once, still 4 a step",
        "step 0: out of memory with 2 samples at once; going on with 1 at once, still 4 a step",
    ]
    assert source.loads == [[0, 1, 2, 3], [0, 1], *[[number] for number in range(8)]]
    small = make_trainer(recipe(micro_batch_size=1, steps=2, lr_schedule={}), "small")
    small.train()
    assert all(torch.equal(value, weights(small)[name]) for name, value in weights(trainer).items())


def test_memory_that_runs_out_in_the_middle_of_a_step_leaves_no_gradient_behind(make_trainer, recipe, pictures):
    class Sometimes(Heavy):
        def load(self, positions: Sequence[int]) -> Batch:
            self.most = 1 if positions[0] == 2 else 2
            return super().load(positions)

    trainer = make_trainer(recipe(steps=1, lr_schedule={}), source=Sometimes(pictures(), 2), warn=lambda line: None)
    trainer.train()
    small = make_trainer(recipe(micro_batch_size=1, steps=1, lr_schedule={}), "small")
    small.train()
    assert all(torch.equal(value, weights(small)[name]) for name, value in weights(trainer).items())
    losses = [read_metrics(one.directory.metrics)[-1]["loss"] for one in (trainer, small)]
    assert losses[0] == losses[1]  # nothing is counted twice


def test_one_sample_too_large_is_one_line_and_keeps_the_states(make_trainer, recipe, pictures):
    make_trainer(recipe(steps=3, lr_schedule={})).train()
    trainer = make_trainer(recipe(steps=6, lr_schedule={}), source=Heavy(pictures(), 0), warn=lambda line: None)
    trainer.resume()
    with pytest.raises(VegaError, match=r"^out of memory with 1 samples at once .* activation_checkpointing=true"):
        trainer.train()
    assert [path.name for path in trainer.directory.states.iterdir()] == ["step-00000003"]


def test_other_errors_are_not_taken_for_it(make_trainer, recipe, pictures):
    class Broken(Heavy):
        def load(self, positions: Sequence[int]) -> Batch:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        make_trainer(recipe(), source=Broken(pictures(), 1)).train()
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_processes_do_not_wait_for_one_that_starts_again(recipe):
    with pytest.raises(VegaError, match="--set micro_batch_size=1"):
        smaller_micro_batch(recipe(), 2, 2, RuntimeError("full"))
    assert smaller_micro_batch(recipe(batch_size=12, micro_batch_size=12), 12, 1, RuntimeError("full")) == 6
    assert smaller_micro_batch(recipe(batch_size=9, micro_batch_size=9), 9, 1, RuntimeError("full")) == 3


def test_pairs_stay_together(recipe):
    data = {"kind": "image_latents", "folder": "f", "max_aspect": 1.0, "prior": {"caption": "a dog"}}
    model = {"base": "vega-mini", "train": ["unet"]}
    pairs = recipe(model=model, data=data, objective={"kind": "denoising"}, batch_size=12, micro_batch_size=12)
    assert smaller_micro_batch(pairs, 12, 1, RuntimeError("full")) == 6
    assert smaller_micro_batch(pairs, 6, 1, RuntimeError("full")) == 2
    with pytest.raises(VegaError, match="out of memory with 2 samples"):
        smaller_micro_batch(pairs, 2, 1, RuntimeError("full"))
    # A saved run keeps the micro-batches that its buckets were cut into.
    with pytest.raises(VegaError, match=r"activation_checkpointing=true, or --set micro_batch_size=6, as another run"):
        smaller_micro_batch(pairs, 12, 2, RuntimeError("full"))
    frugal = pairs.model_copy(update={"activation_checkpointing": True})
    with pytest.raises(VegaError, match=r"run again with --set micro_batch_size=6, as another run \(--run-name\)"):
        smaller_micro_batch(frugal, 12, 2, RuntimeError("full"))
