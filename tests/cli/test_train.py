"""`vega train` as a user runs it: plan, run, resume, refusals; with processes that are killed and stopped (slow)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from vega_diffusion.cli.main import main

TEXT = """
steps = 6
batch_size = 4
micro_batch_size = 2
save_every = 3
log_every = 2
[model]
base = "vega-mini"
train = ["text_encoder", "text_encoder_2"]
[data]
kind = "scene_captions"
[objective]
kind = "scene_text"
[lr_schedule]
warmup_steps = 2
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    file = tmp_path / "text-tiny.toml"
    file.write_text(TEXT)
    return str(file)


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "home" / "runs"


def published(folder):
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 2
    return [load_file(file) for file in files]


def same(first, second):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(first, second, strict=True)
    )


def test_a_plan_is_printed_and_nothing_is_made(recipe, runs, capsys):
    assert main(["train", recipe, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "6 of 4 samples (2 micro-batches each): 24 samples" in printed
    assert "trained" in printed
    assert main(["train", recipe, "--dry-run", "--json", "--set", "steps=10"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["samples"] == 40
    assert plan["trained_parameters"] > 1_000_000
    assert plan["total_gib"] > 0
    assert plan["gflop_per_sample"] > 0
    assert not runs.exists()


def test_run_extend_and_read_back(recipe, runs, capsys):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    assert main(["train", recipe, "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["step"] == 6
    assert done["run"] == str(runs / "text-tiny")
    assert {"loss", "accuracy", "lr"} <= done.keys()
    CLIPTextModel.from_pretrained(runs / "text-tiny/ema/text_encoder")
    CLIPTextModelWithProjection.from_pretrained(runs / "text-tiny/ema/text_encoder_2")
    assert main(["train", recipe, "--set", "steps=8"]) == 0
    assert "resuming text-tiny after step 6" in capsys.readouterr().err
    # Six steps and two more are the same as eight.
    assert main(["train", recipe, "--set", "steps=8", "--run-name", "whole"]) == 0
    assert same(published(runs / "text-tiny/ema"), published(runs / "whole/ema"))
    capsys.readouterr()
    assert main(["train", recipe, "--set", "seed=1"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: seed: changed from 0 to 1 since the run was saved")


def test_warm_start_says_what_fitted_and_is_used(recipe, runs, capsys, tmp_path):
    assert main(["train", recipe, "--run-name", "first"]) == 0
    capsys.readouterr()
    small = ["--set", "steps=1", "--set", "lr_schedule.warmup_steps=0", "--set", "optimizer.lr=1e-9"]
    assert main(["train", recipe, "--run-name", "second", "--init-from", "run:first", *small]) == 0
    said = capsys.readouterr().err
    assert "first weights from run:first: text_encoder " in said
    first, second = published(runs / "first/ema"), published(runs / "second/ema")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for a, b in zip(first, second, strict=True) for k in a)
    assert main(["train", recipe, "--run-name", "third", "--init-from", "run:nobody"]) == 2
    assert "run:nobody: no text_encoder weights in" in capsys.readouterr().err
    broken = tmp_path / "text_encoder"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"not weights")
    assert main(["train", recipe, "--run-name", "third", "--init-from", str(tmp_path)]) == 2
    assert "model.safetensors: truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "stepz=1"], "stepz"),
        (["--set", "steps=many"], "steps: 'many'"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--processes", "0"], "--processes: 0"),
        (["--nope"], "arguments: Unrecognized options: --nope; see vega train --help"),
        (["--processes", "two"], "see vega train --help"),
        (["--run-name", "a/b"], "--run-name: 'a/b'"),
        (["--set", "mixed_precision=fp16", "--device", "cpu"], "mixed_precision: 'fp16'"),
        (["--set", "data.mix.nouns=['unicorn shop']"], "unicorn shop"),
        (["--set", 'model.base="vega"'], "model.base: preset 'vega' comes without tokenizers"),
        (["--set", 'model.base="nowhere/at-all"'], "nowhere/at-all"),
        (["--set", 'model.weights.text_encoder="/nowhere"'], "/nowhere: no text_encoder weights there"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(recipe, capsys, arguments, words):
    assert main(["train", recipe, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_a_missing_recipe(capsys):
    assert main(["train", "nowhere.toml"]) == 2
    assert "nowhere.toml: cannot be read" in capsys.readouterr().err


def command(recipe, *more):
    return [sys.executable, "-m", "vega_diffusion.cli.main", "train", recipe, *more]


@contextmanager
def started(*arguments, **options):
    """A process that does not outlive its test, whatever happens."""
    child = subprocess.Popen(command(*arguments), text=True, **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def wait_for(condition, child, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, "the run ended too early"
        assert time.monotonic() < end, "the run did not get there in time"
        time.sleep(0.02)


LONG = ["--set", "steps=60", "--set", "save_every=7"]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(recipe, runs):
    subprocess.run(command(recipe, *LONG, "--run-name", "whole"), check=True, capture_output=True)
    for kill_after in ("step-00000007", "step-00000028"):
        with started(recipe, *LONG, "--run-name", "killed", stderr=subprocess.DEVNULL) as child:
            wait_for(lambda name=kill_after: (runs / "killed/states" / name).exists(), child)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
    states = [path.name for path in (runs / "killed/states").glob("step-*")]
    assert max(states) < "step-00000060", "the run was over before it could be killed"
    done = subprocess.run(command(recipe, *LONG, "--run-name", "killed"), check=True, capture_output=True, text=True)
    assert "resuming killed after step" in done.stderr
    assert same(published(runs / "whole/ema"), published(runs / "killed/ema"))
    finals = [load_file(runs / name / "states/step-00000060/student.safetensors") for name in ("whole", "killed")]
    assert same(finals[:1], finals[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_saves_first(recipe, runs, number, code, processes):
    long = ["--set", "steps=100000", "--set", "save_every=50000", "--processes", str(processes)]
    metrics = runs / "text-tiny/metrics.jsonl"
    with started(recipe, *long, stderr=subprocess.PIPE) as child:
        wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, child)
        child.send_signal(number)
        _, said = child.communicate(timeout=300)
    assert child.returncode == code
    assert f"stopped by {number.name} after step" in said
    assert len(list((runs / "text-tiny/states").glob("step-*"))) == 1


@pytest.mark.slow
def test_two_processes_equal_one_at_the_same_batch(recipe, runs):
    # Sums in another order differ in the last bits, and Adam's first steps are sign-like: compare after one small step.
    long = ["--set", "steps=3", "--set", "save_every=3", "--set", "optimizer.eps=1e-3", "--set", "batch_size=8"]
    long += ["--set", "model.freeze_after={text_encoder=2}"]  # the third step has other gradients to exchange
    for name, processes in (("one", "1"), ("two", "2")):
        subprocess.run(
            command(recipe, *long, "--run-name", name, "--processes", processes), check=True, capture_output=True
        )
    one, two = (load_file(runs / name / "states/step-00000003/student.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=2e-6)
    lines = [json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("one", "two")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-4)
    assert lines[0]["accuracy"] == pytest.approx(lines[1]["accuracy"], rel=1e-4)


@pytest.mark.slow
def test_a_run_in_use_is_refused(recipe, runs):
    with started(recipe, "--set", "steps=100000", stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: (runs / "text-tiny/metrics.jsonl").exists(), first)
        second = subprocess.run(command(recipe, "--set", "steps=100000"), capture_output=True, text=True)
    assert second.returncode == 2
    assert "another process is training in" in second.stderr
