"""Training by low-rank adapters: they alone move, runs resume exactly, stock diffusers loads what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from vega_diffusion.cli.main import main
from vega_diffusion.errors import InvalidValue, UnreadableModel
from vega_diffusion.models.checkpoint import load_text_encoder, load_unet
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.find import resolve_model
from vega_diffusion.models.lora import add_lora, is_adapter, load_lora, lora_tensors, save_lora
from vega_diffusion.models.lora_algebra import product
from vega_diffusion.models.lora_layouts import MapTree, neutral_path
from vega_diffusion.models.lora_weights import load_lora_for
from vega_diffusion.models.measure import example_inputs
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.lora import LORA_FILE, LoraSpec
from vega_diffusion.specs.presets import SDXL, SSD_1B, VEGA, VEGA_MINI
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.run import build_parts
from vega_diffusion.training.run_directory import RunDirectory

RECIPE = """
steps = 4
batch_size = 4
micro_batch_size = 4
save_every = 2
log_every = 1
[model]
base = "vega-mini"
train = TRAIN
weights = { vae = "vega-mini", text_encoder = "vega-mini", text_encoder_2 = "vega-mini", unet = "vega-mini" }
[model.lora]
rank = 4
alpha = 8.0
[data]
kind = "scene_latents"
num_scenes = 8
captions_per_scene = 1
[objective]
kind = "denoising"
[optimizer]
lr = 1e-2
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    file = tmp_path / "lora.toml"
    file.write_text(RECIPE.replace("TRAIN", '["unet"]'))
    return file


@pytest.mark.parametrize(
    ("spec", "maps", "parameters"),
    [  # attention maps and millions of parameters at rank 4
        (VEGA, 120, 1.14e6),
        (SSD_1B, 272, 2.71e6),
        (SDXL, 560, 5.81e6),
    ],
)
def test_adapters_sit_on_all_attention_maps_of_the_known_models(spec: Any, maps: int, parameters: float):
    with torch.device("meta"):
        unet = build_unet(spec.unet)
        assert add_lora(unet, LoraSpec(rank=4), 0) == maps
    learn = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(learn) == 2 * maps
    assert sum(parameter.numel() for parameter in learn) == pytest.approx(parameters, rel=5e-3)
    assert all(is_adapter(name) == parameter.requires_grad for name, parameter in unet.named_parameters())


@pytest.mark.parametrize("more", [{}, {"dora": True}, {"targets": ("ff.net.0.proj", "conv1")}])
def test_a_network_with_fresh_adapters_computes_the_same(more: dict):
    torch.manual_seed(0)
    unet: Any = build_unet(VEGA_MINI.unet).eval()
    inputs = example_inputs(VEGA_MINI.unet, 16, 16, 7)
    with torch.no_grad():
        before = unet(**inputs).sample
        add_lora(unet, LoraSpec(rank=2, **more), 3)
        torch.testing.assert_close(unet(**inputs).sample, before, rtol=1e-4, atol=1e-5)
    first = {name: value.clone() for name, value in unet.state_dict().items() if is_adapter(name)}
    other: Any = build_unet(VEGA_MINI.unet)
    add_lora(other, LoraSpec(rank=2, **more), 3)
    again = other.state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items() if "magnitude" not in name)


def test_targets_that_name_nothing_are_refused():
    with torch.device("meta"):
        unet = build_unet(VEGA_MINI.unet)
        with pytest.raises(InvalidValue, match=r"model.lora.targets: \['to_x'\] .* to_k, to_out.0, to_q, to_v"):
            add_lora(unet, LoraSpec(targets=("to_x",)), 0)


def test_adapters_are_read_back_and_others_refused(tmp_path: Path):
    first, second, third = (build_unet(VEGA_MINI.unet) for _ in range(3))
    for unet, rank, seed in ((first, 2, 1), (second, 2, 2), (third, 4, 1)):
        add_lora(unet, LoraSpec(rank=rank), seed)
    save_lora(tmp_path, {"unet": first})
    load_lora(second, tmp_path / LORA_FILE, "unet")
    mine, theirs = lora_tensors(first), lora_tensors(second)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    with pytest.raises(UnreadableModel, match="holds other adapters"):
        load_lora(third, tmp_path / LORA_FILE, "unet")


def test_adapters_alone_move_and_a_run_resumes_exactly(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(recipe), "--run-name", "straight"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "steps=2"]) == 0
    assert main(["train", str(recipe), "--run-name", "cut"]) == 0
    states = [RunDirectory(name).states / "step-00000004/student.safetensors" for name in ("straight", "cut")]
    first, second = map(load_file, states)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(is_adapter(name) for name in first)  # the frozen base is not saved with every state
    assert any(value.abs().max() > 0 for name, value in first.items() if "lora_B" in name)
    published = [RunDirectory(name).ema / LORA_FILE for name in ("straight", "cut")]
    assert published[0].read_bytes() == published[1].read_bytes()
    capsys.readouterr()
    assert main(["train", str(recipe), "--run-name", "cut", "--set", "model.lora.rank=8"]) == 2
    assert "model.lora.rank: changed from 4 to 8" in capsys.readouterr().err
    assert main(["train", str(recipe), "--run-name", "warm", "--init-from", "vega-mini"]) == 2
    assert "nothing with model.lora" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().replace('unet = "vega-mini"', 'unet = "run:straight"'))
    assert main(["train", str(recipe), "--run-name", "after"]) == 2
    assert "run:straight: holds adapters and no unet weights; export it first" in capsys.readouterr().err


def test_a_run_of_adapters_is_exported_with_them_merged(recipe: Path, tmp_path: Path):
    recipe.write_text(RECIPE.replace("TRAIN", '["unet", "text_encoder"]').replace("steps = 4", "steps = 2"))
    assert main(["train", str(recipe), "--run-name", "run"]) == 0
    folder = tmp_path / "model"
    assert main(["export", "run", str(folder)]) == 0
    base, spec = resolve_model("vega-mini"), load_spec(folder)
    adapters = load_lora_for(RunDirectory("run").ema / LORA_FILE, MapTree.of_spec(spec))
    assert {name: len(maps) for name, maps in adapters.items()} == {"unet": 120, "text_encoder": 16}
    for component, read in (
        ("unet", lambda place: load_unet(place, spec.unet, torch.float32)),
        ("text_encoder", lambda place: load_text_encoder(place, "text_encoder", spec.text_encoder, torch.float32)),
    ):
        before, after = (dict(read(place).named_parameters()) for place in (base, folder))
        moved = set()
        for name, value in before.items():
            own = adapters[component].get(neutral_path(component, name.removesuffix(".weight")))
            expected = value if own is None else value + product(own)
            torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-6)
            moved |= {name} if not torch.equal(after[name], value) else set()
        assert len(moved) >= 0.75 * len(adapters[component]), "the last layer of the text encoder learns nothing"
    made = json.loads((folder / "vega.json").read_text())["provenance"]["components"]
    assert made["unet"]["run"] == made["text_encoder"]["run"] == "run"
    assert made["unet"]["started_from"] != {}
    assert "run" not in made["vae"] or made["vae"]["run"] != "run"
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder, variant="fp16", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.to(torch.float32)("a cat", num_inference_steps=1, height=128, width=128).images[0].size == (128, 128)


@pytest.mark.parametrize("train", ['["unet"]', '["unet", "text_encoder", "text_encoder_2"]'])
def test_stock_diffusers_loads_what_was_published(recipe: Path, train: str):
    recipe.write_text(RECIPE.replace("TRAIN", train))
    assert main(["train", str(recipe), "--run-name", "run"]) == 0
    folder = RunDirectory("run").ema
    with safe_open(folder / LORA_FILE, "pt") as file:
        names = list(file.keys())
    assert {name.split(".")[0] for name in names} == set(TrainRecipe.read(recipe).model.train)
    # the level that transformers 5 dropped and every other reader expects
    assert all(".text_model." in name for name in names if name.startswith("text_encoder"))

    parts = build_parts(TrainRecipe.read(recipe))
    averages = load_file(RunDirectory("run").states / "step-00000004/ema.safetensors")
    parts.student.load_state_dict(averages, strict=False)
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(resolve_model("vega-mini"), variant="fp16")
    pipe.to(torch.float32)
    spec = load_spec(resolve_model("vega-mini"))
    torch.manual_seed(0)
    inputs = example_inputs(spec.unet, 16, 16, 7)
    inputs |= {name: torch.randn_like(inputs[name]) for name in ("sample", "encoder_hidden_states")}
    ids = torch.randint(0, 1000, (1, 77))
    ours: Any = parts.student.eval()
    with torch.no_grad():
        plain = pipe.unet(**inputs).sample
        pipe.load_lora_weights(folder)
        theirs = pipe.unet(**inputs).sample
        torch.testing.assert_close(theirs, ours.unet(**inputs).sample, rtol=1e-3, atol=1e-4)
        assert (theirs - plain).abs().max() > 0.01
        for name in set(parts.student.component_names) - {"unet"}:
            found = getattr(pipe, name)(ids, output_hidden_states=True).hidden_states[-2]
            own = parts.student.get_submodule(name)(ids, output_hidden_states=True).hidden_states[-2]
            torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)
