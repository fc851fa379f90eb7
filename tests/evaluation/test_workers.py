"""Prompts that share U-Net calls, as on a GPU, are judged by the pictures that each has alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tiny_evaluation import prompt, tiny_checker, tiny_model
from vega_diffusion import Engine
from vega_diffusion.evaluation.run_folder import picture_file
from vega_diffusion.evaluation.workers import DrawSettings, ModelJob, open_checker, prompts_at_once


def test_on_a_cpu_a_prompt_has_its_calls_for_itself() -> None:
    assert prompts_at_once("cpu") == 1
    assert prompts_at_once("cuda") > 1


def test_prompts_drawn_together_have_the_pictures_of_prompts_drawn_alone(tmp_path: Path) -> None:
    folder, sha256 = tiny_checker(tmp_path / "checker")
    engine = Engine.load(str(tiny_model(tmp_path / "model")), "cpu")
    asked = [
        prompt("single_object-000", 10),
        prompt("counting-001", 30, prompt="two dogs", negative_prompt="a cat"),
        prompt("natural-002", 20, images=3, prompt="a red apple"),
    ]

    def job(name: str) -> ModelJob:
        home = tmp_path / name
        (home / "pictures").mkdir(parents=True)
        settings = DrawSettings(num_steps=2)
        return ModelJob("tiny", engine.components.digest, "cpu", "float32", settings, folder, sha256, home)

    checker = open_checker(folder, sha256)
    together, alone = job("together"), job("alone")
    judged = together.work(engine, checker, asked)
    assert [(one.id, one.seed) for one in judged] == [(one.id, seed) for one in asked for seed in one.seeds]
    for one in asked:
        alone.work(engine, checker, [one])
        for seed in one.seeds:
            first, second = (
                np.asarray(Image.open(where.folder / picture_file(one, seed)), np.int16) for where in (together, alone)
            )
            assert np.abs(first - second).max() <= 1
