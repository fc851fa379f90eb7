"""Two processes are one at the same batch: with whole weights (DDP) and with split ones, in distillation too (slow)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tiny_distillation import recipe_text, stretched_teacher, teacher_text
from vega_diffusion.cli.main import main
from vega_diffusion.errors import VegaError
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.sharding import check_sharding


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    teacher = stretched_teacher(tmp_path / "teacher")
    objective = 'feature_weight = 0.1\nfeature_level = "module"\n' + teacher_text("one", teacher, "even")
    file = tmp_path / "tiny.toml"
    # Adam's first steps are sign-like where gradients are small: a large eps keeps last bits from growing.
    text = recipe_text(objective, steps=3, surgery=(teacher, "even"), micro_batch_size=1, save_every=2)
    file.write_text(text.replace("lr = 1e-4", "lr = 1e-3\neps = 1e-3"))
    return file


Train = Callable[..., str]


@pytest.fixture
def train(recipe: Path, programs: Path) -> Train:
    """Run `vega train` as a user does and return what it said: name of the run, further arguments."""
    return partial(_train, programs, recipe)


def _train(programs: Path, recipe: Path, name: str, *more: str) -> str:
    command = [str(programs / "vega"), "train", str(recipe), "--run-name", name, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def weights(name: str, step: int = 3) -> dict[str, Tensor]:
    states = RunDirectory(name).states / f"step-{step:08d}"
    return {
        f"{file}/{key}": value
        for file in ("student", "ema")
        for key, value in load_file(states / f"{file}.safetensors").items()
    }


def relative(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the length of the difference of all tensors over the length of the wanted ones."""
    assert found.keys() == wanted.keys()
    difference = sum(float((found[key] - wanted[key]).double().square().sum()) for key in wanted)
    return (difference / sum(float(value.double().square().sum()) for value in wanted.values())) ** 0.5


@pytest.mark.slow
def test_two_processes_distil_as_one_does(train: Train) -> None:
    assert "processes" not in train("one")
    assert "2 processes: DistributedDataParallel" in train("ddp", "--processes", "2")
    assert "2 processes: FSDPLossModule" in train("split", "--processes", "2", "--set", "sharding=full")
    lines = {}
    for name in ("one", "ddp", "split"):
        lines[name] = [json.loads(line) for line in RunDirectory(name).metrics.read_text().splitlines()]
        assert relative(weights(name), weights("one")) < 1e-5
        published = load_file(RunDirectory(name).ema / "unet/diffusion_pytorch_model.safetensors")
        averages = {key.removeprefix("ema/unet."): value for key, value in weights(name).items() if key[:3] == "ema"}
        assert all(torch.equal(published[key], value) for key, value in averages.items())
    for name in ("ddp", "split"):
        for found, wanted in zip(lines[name], lines["one"], strict=True):
            assert found.keys() == wanted.keys()
            for key in wanted.keys() - {"samples_per_s", "peak_gib", "time"}:
                # Terms of features are squares of differences, in which most digits of both cancel.
                rel = 1e-4 if key.startswith("feature/") else 1e-5
                assert found[key] == pytest.approx(wanted[key], rel=rel, abs=1e-7), key


@pytest.mark.slow
def test_a_state_of_split_weights_is_one_of_whole_ones(train: Train) -> None:
    train("straight", "--processes", "2", "--set", "sharding=full")
    train("there", "--set", "steps=2")
    train("there", "--processes", "2", "--set", "sharding=full")
    train("back", "--processes", "2", "--set", "sharding=full", "--set", "steps=2")
    train("back")
    for name in ("there", "back"):
        assert relative(weights(name), weights("straight")) < 1e-5
    # A state cannot be told from one of a single process: the same files with the same shapes.
    states = [
        load_file(RunDirectory(name).states / "step-00000003/optimizer.safetensors") for name in ("back", "there")
    ]
    assert {key: value.shape for key, value in states[0].items()} == {
        key: value.shape for key, value in states[1].items()
    }


UNDER_WAY = """
import signal
import sys
import torch
from accelerate import Accelerator
from torch import distributed
from vega_diffusion.cli.main import main

ended = Accelerator.end_training

def end_training(self):
    # What a thread of gloo still has in hand when a run is over, by chance: here it always has.
    for _ in range(8):
        distributed.all_gather([torch.empty(4_000_000) for _ in range(2)], torch.ones(4_000_000), async_op=True)
    ended(self)

Accelerator.end_training = end_training
signal.alarm(100)
sys.exit(main(sys.argv[1:]))
"""
LAUNCH = "import sys; from vega_diffusion.training.launch import launch; sys.exit(launch(sys.argv[1:], 2))"


@pytest.mark.slow
def test_a_run_ends_while_its_processes_still_exchange(recipe: Path, programs: Path, tmp_path: Path) -> None:
    script, python = tmp_path / "rank.py", str(programs / "python")
    script.write_text(UNDER_WAY)
    arguments = [python, str(script), "train", str(recipe), "--set", "steps=1"]
    done = subprocess.run([sys.executable, "-c", LAUNCH, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes: DistributedDataParallel" in done.stderr
    assert "1 steps done" in done.stdout


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ([], 1, "sharding: 'full' is not allowed; allowed: none with one process"),
        (["mixed_precision=fp16"], 2, "mixed_precision: 'fp16'"),
        (['compile=["unet.mid_block"]'], 2, "compile: "),
        (["model.freeze_after={unet=2}"], 2, "model.freeze_after: "),
    ],
)
def test_what_cannot_be_split_is_refused(recipe: Path, changes: list[str], processes: int, message: str) -> None:
    read = TrainRecipe.read(recipe, ["sharding=full", *changes])
    with pytest.raises(VegaError, match=message):
        check_sharding(read, processes)
    check_sharding(TrainRecipe.read(recipe, ["sharding=full"]), 2)


def test_accelerates_own_sharding_is_refused(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["train", str(recipe), "--run-name", "fsdp"]) == 2
    assert "on a CPU it would be DDP without a word" in capsys.readouterr().err
