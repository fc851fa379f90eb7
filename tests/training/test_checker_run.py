"""A checker's run through the one trainer: resume is exact, what it publishes is read again and put into a folder."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from vega_diffusion.cli.main import main
from vega_diffusion.data.scenes.checker_classes import checker_spec
from vega_diffusion.models.checker import read_checker
from vega_diffusion.training.components import locate

ROOT = Path(__file__).parents[2]
SMALL = (
    "steps=4",
    "batch_size=2",
    "micro_batch_size=1",
    "save_every=2",
    "log_every=1",
    "lr_schedule.warmup_steps=1",
    "mixed_precision=no",  # half precision is slow where a processor has no instructions for it
    'data.mix.styles=["noto"]',
)


def train(name: str, *more: str) -> int:
    changes = [part for change in (*SMALL, *more) for part in ("--set", change)]
    return main(["train", str(ROOT / "recipes/scene-checker-cpu.toml"), "--run-name", name, *changes])


def test_a_checker_is_trained_resumed_and_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    schedule = "lr_schedule.decay_steps=4"
    assert train("whole", schedule) == 0
    assert train("parts", schedule, "steps=2") == 0
    assert train("parts", schedule) == 0
    assert "resuming parts after step 2" in capsys.readouterr().err
    whole, parts = (read_checker(locate(f"run:{name}", "checker").parent) for name in ("whole", "parts"))
    assert whole.spec == checker_spec()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    publish = runpy.run_path(str(ROOT / "scripts/publish_checker.py"))["main"]
    assert publish(["run:whole", str(tmp_path / "checker")]) == 0
    published = read_checker(tmp_path / "checker")
    torch.testing.assert_close(published.cells.weight, whole.cells.weight, atol=1e-4, rtol=1e-3)
    record = json.loads((tmp_path / "checker/checker.json").read_text())
    assert record["sha256"]["model.safetensors"] in capsys.readouterr().out
    assert (record["provenance"]["run"], record["provenance"]["samples"]) == ("whole", 8)
    assert publish(["run:none", str(tmp_path / "other")]) == 2


def test_its_plan_needs_no_sprites_of_the_held_out_style(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(ROOT / "recipes/scene-checker-cpu.toml"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 5e5 < plan["trained_parameters"] < 2e6
    assert 0.3 < plan["gflop_per_sample"] < 1.5


def test_without_the_held_out_style_the_run_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    assert main(["train", str(ROOT / "recipes/scene-checker-cpu.toml"), "--set", "steps=200"]) == 2
    assert "vega data icons" in capsys.readouterr().err
