"""Command lines of diffusers' scripts on six tiny pictures, shared by the tests of what flags become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, Script, with_defaults
from vega_diffusion.training.diffusers_job import Job, translate
from vega_diffusion.training.diffusers_machine import Machine

PRIOR = {"with_prior_preservation": True, "class_prompt": "a photo of a dog"}
NUMBER = 6
# What a well-equipped machine has; that none of it is there is tested apart.
RICH = Machine(has_gpu=True, packages=frozenset({"wandb", "tensorboard"}))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number in range(NUMBER):
        Image.new("RGB", (40, 32), (number * 40, 0, 0)).save(folder / f"{number}.png")
        row = {"file_name": f"{number}.png", "text": f"cat {number}", "said": f"dog {number}"}
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what pictures look like is remembered."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(home))


def given(script: Script, pictures: Path, **changes: Any) -> dict[str, Any]:
    """The least that a script needs, with changes."""
    least: dict[str, Any] = {"pretrained_model_name_or_path": "vega-mini", "resolution": 128, "seed": 1}
    if script == DREAMBOOTH:
        least |= {"instance_data_dir": str(pictures), "instance_prompt": "a photo of sks dog"}
    else:
        least |= {"train_data_dir": str(pictures)}
    return least | changes


def job(script: Script, pictures: Path, machine: Machine = RICH, **changes: Any) -> Job:
    return translate(with_defaults(script, **given(script, pictures, **changes)), machine)
