"""Properties of the one loop: accumulation, exact resume, freezing, guards, what it writes."""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.training.guard import NotFinite, RunStopped
from vega_diffusion.training.metrics import read_metrics
from vega_diffusion.training.state import optimizer_tensors

FIXED = {"kind": "cosine", "warmup_steps": 2, "decay_steps": 6}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.student.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first, second, tolerance):
    return all(torch.allclose(first[name], second[name], rtol=0, atol=tolerance) for name in first)


def test_accumulation_equals_the_large_batch(make_trainer, recipe):
    # SGD-like comparison of one step: AdamW would magnify rounding where a gradient is nearly zero.
    gradients = []
    for size in (1, 2, 4):
        trainer = make_trainer(recipe(micro_batch_size=size), f"micro-{size}")
        trainer.optimizer.step = lambda: None
        trainer.optimizer.zero_grad = lambda: None
        trainer._one_step()
        gradients.append({n: p.grad.clone() for n, p in trainer.student.named_parameters()})
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    assert close(gradients[0], gradients[2], 1e-6)
    assert close(gradients[1], gradients[2], 1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resume_equals_the_unbroken_run_bit_for_bit(make_trainer, recipe, precision):
    unbroken = make_trainer(recipe(mixed_precision=precision), "unbroken")
    start = weights(unbroken)
    unbroken.train()
    assert not same(start, weights(unbroken))
    for steps in (2, 5, 6):  # stops in the warm-up, in the decay, then the end
        broken = make_trainer(recipe(mixed_precision=precision), "broken")
        assert broken.resume() == (steps > 2)
        while broken.step < steps:
            broken._one_step()
        broken._save(0.0)
    assert same(weights(unbroken), weights(broken))
    assert same(unbroken.ema.state_dict(), broken.ema.state_dict())
    again = make_trainer(recipe(mixed_precision=precision), "unbroken")
    assert again.resume()
    assert same(weights(unbroken), weights(again))
    assert again.train().step == 6


def test_resume_keeps_the_optimizer(make_trainer, recipe):
    def tensors(trainer):
        names = {id(parameter): name for name, parameter in trainer.student.named_parameters()}
        return optimizer_tensors(trainer._torch_optimizer, names)

    first = make_trainer(recipe())
    first.train()
    second = make_trainer(recipe())
    second.resume()
    assert {name.rpartition("|")[2] for name in tensors(first)} == {"step", "exp_avg", "exp_avg_sq"}
    assert same(tensors(first), tensors(second))


def test_frozen_modules_do_not_move(make_trainer, recipe):
    model = {"base": "vega-mini", "train": ["vae"], "freeze": ["vae.encoder", "vae.quant_conv"]}
    trainer = make_trainer(recipe(model=model))
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("vae.decoder.", "vae.post_quant_conv."))}


def test_freeze_after_stops_a_component_at_its_step(make_trainer, recipe):
    model = {"base": "vega-mini", "train": ["vae"], "freeze_after": {"vae": 2}}
    trainer = make_trainer(recipe(model=model))
    trainer._one_step()
    trainer._one_step()
    before = weights(trainer)
    trainer._enter_phase(2)
    assert not any(parameter.requires_grad for parameter in trainer.student.parameters())
    assert same(before, weights(trainer))


def test_a_sample_that_is_not_finite_is_named_and_weights_stay(make_trainer, recipe, pictures):
    trainer = make_trainer(recipe(), source=pictures(bad=9))
    with pytest.raises(NotFinite, match=r"step 2: .* for samples picture 9; "):
        trainer.train()
    assert trainer.step == 2
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_a_state_never_outruns_the_guard(make_trainer, recipe, pictures):
    # As on an accelerator, where numbers are read only now and then: the bad step is found before it is saved.
    trainer = make_trainer(recipe(save_every=100, log_every=100), source=pictures(bad=9))
    trainer._check_every = 100
    while trainer.step < 4:
        trainer._one_step()
    with pytest.raises(NotFinite, match=r"step 2: .* picture 9; "):
        trainer._save(0.0)
    assert list(trainer.directory.states.iterdir()) == []


def test_the_last_steps_are_logged_too(make_trainer, recipe):
    trainer = make_trainer(recipe(steps=5, log_every=3))
    assert trainer.train().metrics["loss"] > 0
    assert [line["step"] for line in read_metrics(trainer.directory.metrics)] == [3, 5]


def test_sigterm_saves_and_says_143(make_trainer, recipe):
    trainer = make_trainer(recipe(save_every=100, log_every=100, sample_every=4), on_sample=lambda *_: {})
    plain = trainer._one_step

    def step_then_signal():
        result = plain()
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    trainer._one_step = step_then_signal
    with pytest.raises(RunStopped, match="stopped by SIGTERM after step 2") as stopped:
        trainer.train()
    assert stopped.value.exit_code == 143
    assert [path.name for path in trainer.directory.states.iterdir()] == ["step-00000002"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_a_run_leaves(make_trainer, recipe):
    seen = []
    trainer = make_trainer(
        recipe(keep=1, sample_every=3), on_sample=lambda step, _: seen.append(step) or {"score": 1.5}
    )
    result = trainer.train()
    assert result.step == 6
    assert seen == [3, 6]
    assert [path.name for path in trainer.directory.states.iterdir()] == ["step-00000006"]
    lines = read_metrics(trainer.directory.metrics)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 6]
    assert {"loss", "l1", "edge", "kl", "psnr", "grad_norm", "lr", "samples_per_s", "peak_gib"} <= lines[0].keys()
    assert 0.1 < lines[0]["peak_gib"] < 24
    assert lines[1]["score"] == 1.5
    # What is published is the average, in a folder that diffusers reads.
    vae = AutoencoderKL.from_pretrained(trainer.directory.ema / "vae")
    averages = trainer.ema.state_dict()
    assert all(torch.equal(value, averages[f"vae.{name}"]) for name, value in vae.named_parameters())


def test_metrics_of_a_lost_future_are_removed(make_trainer, recipe):
    make_trainer(recipe(steps=4, lr_schedule={})).train()
    trainer = make_trainer(recipe(steps=6, lr_schedule={}))
    with open(trainer.directory.metrics, "a") as file:
        file.write(json.dumps({"step": 5, "loss": 1.0}) + '\n{"step": 6, "lo')
    trainer.resume()
    trainer.train()
    assert [line["step"] for line in read_metrics(trainer.directory.metrics)] == [2, 4, 6]


def test_a_changed_recipe_is_refused_by_name(make_trainer, recipe, pictures):
    make_trainer(recipe()).train()
    with pytest.raises(VegaError, match=r"^optimizer.lr: changed from 0.01 to 0.02 since .*--run-name$"):
        make_trainer(recipe(optimizer={"lr": 2e-2})).resume()
    with pytest.raises(VegaError, match=r"^data: other samples"):
        make_trainer(recipe(), source=pictures(seed=1)).resume()
    with pytest.raises(VegaError, match=r"^model.weights.vae: other weights"):
        make_trainer(recipe(), inputs={"vae": "ab"}).resume()
    with pytest.raises(VegaError, match=r"^--init-from: .* at step 6"):
        make_trainer(recipe(), init_from="elsewhere").resume()
    with pytest.raises(InvalidValue, match=r"^steps: 4 .* at least 6"):
        make_trainer(recipe(steps=4)).resume()
    assert make_trainer(recipe(steps=8, save_every=1, keep=5, log_every=1, micro_batch_size=4)).resume()


def test_more_steps_under_a_falling_rate_are_allowed_with_a_word(make_trainer, recipe):
    make_trainer(recipe()).train()
    said: list[str] = []
    assert make_trainer(recipe(steps=9), warn=said.append).resume()
    assert said == ["steps: 6 became 9, the learning rate changes course from here"]
    fixed = {"kind": "cosine", "decay_steps": 6}
    make_trainer(recipe(lr_schedule=fixed), "fixed").train()
    assert make_trainer(recipe(lr_schedule=fixed, steps=9), "fixed", warn=said.append).resume()
    assert len(said) == 1


def test_where_no_step_can_be_recorded_the_run_says_so_and_is_the_same(make_trainer, recipe):
    said: list[str] = []
    plain, asked = make_trainer(recipe()), make_trainer(recipe(cuda_graphs=True), "asked", warn=said.append)
    plain.train()
    asked.train()
    assert said == ["cuda_graphs: nothing is recorded, as steps run on cpu"]
    assert same(weights(plain), weights(asked))


def test_fp16_on_a_cpu_is_refused(make_trainer, recipe):
    with pytest.raises(InvalidValue, match="mixed_precision: 'fp16'"):
        make_trainer(recipe(mixed_precision="fp16"))


def test_unknown_modules_are_refused(make_trainer, recipe):
    with pytest.raises(InvalidValue, match="compile: 'vae.engine'"):
        make_trainer(recipe(compile=["vae.engine"]))
    with pytest.raises(InvalidValue, match="model.freeze: 'vae.engine'"):
        make_trainer(recipe(model={"base": "vega-mini", "train": ["vae"], "freeze": ["vae.engine"]}))


def test_a_publication_that_failed_is_made_up_for(make_trainer, recipe):
    def full(student, step):
        raise OSError(errno.ENOSPC, "No space left on device")

    unbroken = make_trainer(recipe(), "unbroken")
    unbroken.train()
    assert unbroken.directory.published_step() == 6
    make_trainer(recipe(steps=3, lr_schedule=FIXED)).train()
    with pytest.raises(OSError, match="No space left"):  # as a kill after the state's renaming
        broken = make_trainer(recipe(lr_schedule=FIXED), publish=full)
        broken.resume()
        broken.train()
    directory = broken.directory
    assert (directory.states / "step-00000006").is_dir()
    (directory.path / ".tmp-ema-1").mkdir()
    (directory.path / ".tmp-old-ema-1").mkdir()
    directory.recipe.write_text(recipe(lr_schedule=FIXED).to_json())
    assert not directory.is_done(recipe(lr_schedule=FIXED)), "ema/ is of step 3"
    again = make_trainer(recipe(lr_schedule=FIXED))
    again.resume()
    again.train()
    assert directory.is_done(recipe(lr_schedule=FIXED))
    assert not list(directory.path.glob(".tmp-*"))
    published = AutoencoderKL.from_pretrained(directory.ema / "vae")
    averages = again.ema.state_dict()
    assert all(torch.equal(value, averages[f"vae.{name}"]) for name, value in published.named_parameters())
    (directory.ema / "step.json").unlink()  # as of a run from before that was written
    assert directory.is_done(recipe(lr_schedule=FIXED))


def test_a_signal_during_the_last_save_waits_for_it(make_trainer, recipe):
    trainer = make_trainer(recipe(save_every=100))
    plain = trainer.publish

    def publish_after_signal(student, step):
        os.kill(os.getpid(), signal.SIGTERM)
        plain(student, step)

    trainer.publish = publish_after_signal
    with pytest.raises(RunStopped, match="stopped by SIGTERM after step 6"):
        trainer.train()
    assert trainer.directory.published_step() == 6
