"""The three commands of Segmind-Vega's card, byte for byte but for the exported variables.

The default suite reads them as a shell would and runs two steps on a tiny model in this process; the slow tests run
them with `accelerate launch` in a shell, on a copy of vega-mini.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any, cast

import pytest
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image

from hub_double import TOKEN, USER, HubDouble, hub, hub_double  # noqa: F401 (a fixture)
from vega_diffusion.cli.diffusers_script import main
from vega_diffusion.models.find import resolve_model
from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, FULL, LORA, SCRIPTS, Script

# ruff: noqa: F811 (fixtures)

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)\n```", (ROOT / "tests/golden/card-commands.md").read_text(), re.DOTALL)
OUTPUTS = {LORA: "vega-pokemon-model-lora", FULL: "vega-pokemon-model", DREAMBOOTH: "lora-trained-vega"}
PICTURES = {f"image_{number}.png" for number in range(4)}
ADAPTERS = {"pytorch_lora_weights.safetensors", "README.md"} | PICTURES
COMPONENTS = {"scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"}
WANDB = importlib.util.find_spec("wandb") is not None


def command(script: Script) -> str:
    """Return a command without the lines that export variables."""
    block = next(block for block in BLOCKS if f" {script}.py " in block)
    exported, _, rest = block.partition("\n\n")
    assert all(line.startswith("export ") for line in exported.splitlines())
    return rest


def variables(folder: Path, model: Path, vae: Path) -> dict[str, str]:
    """Return other values for what the card exports."""
    return {
        "MODEL_NAME": str(model),
        "VAE_NAME": str(vae),
        "VAE_PATH": str(vae),
        "DATASET_NAME": str(folder / "pictures"),
        "INSTANCE_DIR": str(folder / "dog"),
        "OUTPUT_DIR": OUTPUTS[DREAMBOOTH],
    }


def make_pictures(folder: Path) -> None:
    """Write six captioned pictures, and five of a dog with what a download from the Hub leaves beside them."""
    lines = []
    for home, number in (("pictures", 6), ("dog", 5)):
        (folder / home).mkdir()
        for one in range(number):
            Image.effect_noise((150, 140), 20.0 + 20 * one).convert("RGB").save(folder / home / f"{one}.png")
            lines.append(json.dumps({"file_name": f"{one}.png", "text": f"a drawing of creature {one}"}))
    (folder / "pictures/metadata.jsonl").write_text("\n".join(lines[:6]))
    (folder / "dog/.cache/huggingface").mkdir(parents=True)


def check_result(script: Script, folder: Path, sent: dict[str, bytes], model: Path) -> None:
    """Check what stands in a folder, what was uploaded of it, and that stock diffusers takes it."""
    assert all((folder / name).read_bytes() == content for name, content in sent.items())
    if script == FULL:
        assert {name.split("/")[0] for name in sent} == COMPONENTS | PICTURES | {
            "README.md",
            "model_index.json",
            "vega.json",
        }
        pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder)
    else:
        assert sent.keys() == ADAPTERS
        pipe = StableDiffusionXLPipeline.from_pretrained(model, variant=None if model.name == "tiny" else "fp16")
        pipe.load_lora_weights(folder)
        assert pipe.get_active_adapters()
    assert {path.name for path in folder.glob("image_*.png")} == PICTURES
    # The run itself stays here and goes nowhere.
    assert {"states", "logs" if not WANDB else "ema", "metrics.jsonl", "recipe.toml"} <= set(os.listdir(folder))


def test_the_commands_are_the_cards():
    assert len(BLOCKS) == 3
    assert all(command(script).startswith(f"accelerate launch {script}.py \\\n") for script in SCRIPTS)
    assert all(len(shlex.split(command(script).replace("\\\n", " "))) >= 15 for script in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_steps_of_every_command(
    script: Script,
    tmp_path: Path,
    tiny_folder: Path,
    hub: HubDouble,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_pictures(tmp_path)
    text = Template(command(script).replace("\\\n", " ")).substitute(variables(tmp_path, tiny_folder, tiny_folder))
    words = shlex.split(text)[3:]
    assert main(script, [*words, "--resolution", "64", "--max_train_steps", "2"]) == 0
    said = capsys.readouterr()
    assert "--mixed_precision: fp16 needs a GPU and this machine has none; fp32 is used instead" in said.err
    check_result(script, tmp_path / OUTPUTS[script], hub.repositories[f"{USER}/{OUTPUTS[script]}"], tiny_folder)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_in_a_shell(script: Script, tmp_path: Path):
    make_pictures(tmp_path)
    model, vae, scripts = tmp_path / "model", tmp_path / "vae", tmp_path / "scripts"
    shutil.copytree(resolve_model("vega-mini"), model)
    shutil.copytree(model / "vae", vae)
    scripts.mkdir()
    for name in SCRIPTS:
        (scripts / f"{name}.py").symlink_to(ROOT / "scripts" / f"{name}.py")
    with hub_double() as double:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ACCELERATE"))}
        environment |= variables(tmp_path, model, vae) | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "VEGA_HOME": str(tmp_path / "home"),
            "HF_HOME": str(tmp_path / "hub"),
            "HF_ENDPOINT": double.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "WANDB_MODE": "offline",
        }
        text = f"{command(script)} --resolution 128 --max_train_steps 20"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=scripts,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "fp16 needs a GPU and this machine has none; fp32 is used instead" in done.stderr
    assert ("wandb is not installed" in done.stderr) != WANDB
    assert TOKEN not in done.stdout + done.stderr
    out = scripts / OUTPUTS[script]
    check_result(script, out, double.repositories[f"{USER}/{out.name}"], model)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")  # vega-mini's own, out of its card
    assert "| optimizer steps | 20 |" in card
    state = cast(dict[str, Any], json.loads((out / "states/step-00000020/state.json").read_text()))
    assert state["step"] == 20
