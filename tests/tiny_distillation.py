"""A distillation recipe and its teacher at the mini family's size, a few steps long."""

from __future__ import annotations

from pathlib import Path

import pytest

from vega_diffusion.cli.main import main

_RECIPE = """
steps = {steps}
batch_size = 4
micro_batch_size = {micro_batch_size}
save_every = {save_every}
log_every = 1
[model]
base = "vega-mini"
train = ["unet"]
weights = {{ vae = "vega-mini", text_encoder = "vega-mini", text_encoder_2 = "vega-mini" }}
{surgery}
[data]
kind = "scene_latents"
num_scenes = {num_scenes}
captions_per_scene = {captions_per_scene}
[objective]
kind = "distillation"
{more}
[optimizer]
lr = 1e-4
"""


def stretched_teacher(folder: Path) -> Path:
    """Write a folder of mini-sdxl's shape whose further blocks all count, stretched from vega-mini."""
    assert main(["map", "carve", "vega-mini", str(folder), "--map", "stretch", "--student", "mini-sdxl"]) == 0
    return folder


@pytest.fixture(scope="session")
def stretched_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a teacher, made once a session: tests read it."""
    return stretched_teacher(tmp_path_factory.mktemp("stretched") / "teacher")


def recipe_text(
    more: str,
    *,
    steps: int,
    surgery: tuple[Path, str] | None = None,
    micro_batch_size: int = 4,
    save_every: int = 1,
    num_scenes: int = 8,
    captions_per_scene: int = 1,
) -> str:
    """Return a recipe as TOML: `more` is the rest of the objective with its teachers, `surgery` (teacher, map)."""
    carved = f'surgery = {{ teacher = "{surgery[0]}", map = "{surgery[1]}" }}' if surgery else ""
    return _RECIPE.format(
        more=more,
        steps=steps,
        surgery=carved,
        micro_batch_size=micro_batch_size,
        save_every=save_every,
        num_scenes=num_scenes,
        captions_per_scene=captions_per_scene,
    )


def teacher_text(name: str, base: Path | str, layers: str, **more: object) -> str:
    """Return one teacher as TOML; values are written as they are, texts in quotes."""
    lines = {"name": name, "base": str(base), "map": layers} | more
    written = (f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in lines.items())
    return "\n".join(("[[objective.teachers]]", *written))
