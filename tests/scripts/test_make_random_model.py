"""The script that writes models with random weights: whole, labelled, of the preset's exact shape."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.layout import read_json
from vega_diffusion.models.measure import measure_model
from vega_diffusion.specs.presets import VEGA_MINI

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_random_model.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    module_spec = importlib.util.spec_from_file_location("make_random_model", SCRIPT)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["make_random_model.py", *argv])
    return script.main()


def test_the_folder_is_labelled_and_of_the_exact_shape(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "random"
    assert run(script, monkeypatch, "vega-mini", str(folder), "--seed", "3") == 0
    spec = load_spec(folder)
    assert (spec.name, spec.unet) == ("vega-mini-random", VEGA_MINI.unet)
    assert read_json(folder / "vega.json")["provenance"] == {
        "weights": "random",
        "made_by": "scripts/make_random_model.py",
        "seed": 3,
    }
    assert "random numbers" in (folder / "README.md").read_text()
    tensors = [tensor for path in folder.rglob("*.safetensors") for tensor in load_file(path).values()]
    assert sum(tensor.numel() for tensor in tensors) == measure_model(spec).total_parameters
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in tensors)
    assert torch.get_default_dtype() == torch.float32


def test_nothing_is_overwritten_and_bad_names_are_one_line(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    for argv, complaint in (
        (("vega-mini", str(tmp_path / "mine")), "folder"),
        (("sd-1.5", str(tmp_path / "new")), "one of: sdxl"),
        (("nonsense", str(tmp_path / "new")), "nonsense"),
    ):
        assert run(script, monkeypatch, *argv) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
