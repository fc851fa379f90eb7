"""A tiny autoencoder's run through the one trainer: the full one stays, what it publishes lies beside a model."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_models import TWO_STEPS
from vega_diffusion.cli.main import main
from vega_diffusion.inference.components import Components
from vega_diffusion.models.digest import model_digest
from vega_diffusion.models.find import find_folder
from vega_diffusion.specs.recipe import TrainRecipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/tiny-autoencoder-mini-cpu.toml"


def test_it_is_trained_and_put_beside_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    changes = [part for change in TWO_STEPS for part in ("--set", change)]
    assert main(["train", str(RECIPE), "--run-name", "run", *changes]) == 0, capsys.readouterr().err
    trained = load_file(tmp_path / "runs/run/ema/vae_tiny/diffusion_pytorch_model.safetensors")
    assert not (tmp_path / "runs/run/ema/vae").exists(), "the full one does not learn"
    (first, *_, last) = map(json.loads, (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines())
    assert {"latent", "psnr", "psnr_picture"} <= first.keys()
    assert last["step"] == 2

    publish = runpy.run_path(str(ROOT / "scripts/publish_model.py"))["main"]
    model, same = tmp_path / "model", ["--unet", "vega-mini", "--text", "vega-mini", "--vae", "vega-mini"]
    assert publish(["vega-mini", str(model), *same, "--vae-tiny", "run:run"]) == 0
    assert publish(["vega-mini", str(model), *same, "--scores", str(tmp_path / "none")]) == 2, "no evaluation there"
    folder = model / "vae_tiny"
    assert {path.name for path in folder.iterdir()} == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    record = json.loads((model / "vega.json").read_text())["provenance"]["components"]["vae_tiny"]
    assert (record["run"], record["samples"]) == ("run", 4)
    tiny = Components.open(str(model), "cpu", "float32", None).tiny_vae()
    assert tiny is not None
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, trained[name].half().float()), name
    # A model is the same model with or without it.
    assert model_digest(model, torch.float16) == model_digest(find_folder("vega-mini"), torch.float16)


def test_a_recipe_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    for change, said in (
        ('model.train=["vae"]', "vae_tiny"),
        ("sample_every=10", "sample_every"),
        ("data.kind=scene_captions", "scene_images"),
    ):
        assert main(["train", str(RECIPE), "--dry-run", "--set", change]) == 2
        assert said in capsys.readouterr().err
    assert TrainRecipe.read(RECIPE).model.weights == {"vae": "vega-mini"}, "whose latents it reads and writes"
