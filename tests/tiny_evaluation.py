"""For tests of the evaluation: what a perfect checker would find in a scene, a tiny untrained checker, a tiny model."""

from __future__ import annotations

from pathlib import Path

import torch

from tiny_models import tiny, write_folder
from vega_diffusion.data.scenes.scene import BACKGROUNDS, HUES, PLACES, STYLES, Scene
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.evaluation.results import make_result
from vega_diffusion.evaluation.run_folder import Identity, JudgedPicture
from vega_diffusion.models.checker import SceneChecker, write_checker
from vega_diffusion.models.detections import Detection, Finding
from vega_diffusion.specs.checker import CheckerSpec
from vega_diffusion.specs.evaluation import OVERALL_KINDS, ExpectedObject, SuitePrompt


def truth_of(scene: Scene) -> Finding:
    """What a checker without a fault says of a scene."""
    found = []
    for rank, placed in enumerate(scene.objects):
        x0, y0, x1, y1 = (float(edge) for edge in placed.box)
        found.append(Detection(placed.noun, 1.0, placed.colour or "natural", (x0, y0, x1, y1), 0.99 - 0.01 * rank))
    return Finding(tuple(found), scene.background, scene.style)


def tiny_checker(folder: Path) -> tuple[Path, str]:
    """Write an untrained checker of the real shape; return its folder and its hash."""
    torch.manual_seed(0)
    spec = CheckerSpec(
        nouns=load_vocabulary().names,
        colours=("natural", *HUES),
        styles=STYLES,
        backgrounds=(*BACKGROUNDS, *PLACES),
        widths=(8, 8, 8, 8, 8),
        neck_width=8,
        whole_width=8,
    )
    folder.mkdir(parents=True)
    return folder, write_checker(folder, SceneChecker(spec).eval())


def tiny_model(folder: Path) -> Path:
    """Write the tiny model with the suite's picture size."""
    spec = tiny(sample_size=16)
    generation = spec.generation.model_copy(update={"width": 128, "height": 128})
    return write_folder(spec.model_copy(update={"generation": generation}), folder)


def prompt(name: str = "single_object-000", first_seed: int = 10, images: int = 2, **changes: object) -> SuitePrompt:
    """A prompt for one cat, with changes; its kind is the first part of its name."""
    values: dict[str, object] = {
        "id": name,
        "kind": name.split("-")[0],
        "prompt": "a cat",
        "objects": (ExpectedObject(nouns=("cat",)),),
        "seeds": tuple(range(first_seed, first_seed + images)),
    }
    return SuitePrompt.model_validate(values | changes)


def identity(**changes: object) -> Identity:
    """An identity with changes."""
    values: dict[str, object] = {
        "suite": "scenes",
        "split": "dev",
        "suite_sha256": "a" * 64,
        "model": "some-model",
        "model_digest": "b" * 64,
        "checker_sha256": "c" * 64,
        "settings": {"num_steps": 2},
    }
    return Identity.model_validate(values | changes)


def judged(asked: SuitePrompt, *passed: bool) -> list[JudgedPicture]:
    """Verdicts on a prompt's pictures, in the order of its seeds, with an empty finding."""
    return [
        JudgedPicture(
            id=asked.id, kind=asked.kind, unseen=asked.unseen, seed=seed, file=f"pictures/{asked.id}-{seed}.png",
            passed=one, reasons=() if one else ("no cat (nothing found)",), finding=Finding((), "white", "noto"),
        )
        for seed, one in zip(asked.seeds, passed, strict=True)
    ]  # fmt: skip


def finished_run(folder: Path, wrong_kinds: int = 1, **changes: object) -> Path:
    """Write the result of a run of one prompt a kind; of the first kinds one picture is wrong. Return its folder."""
    asked = [prompt(f"{kind}-000", 10 * row, 2) for row, kind in enumerate(OVERALL_KINDS)]
    found = [one for number, each in enumerate(asked) for one in judged(each, True, number >= wrong_kinds)]
    about = {"run": "r", "commit": None, "finished": "2026-01-01T00:00:00+00:00", "seconds": 800.0}
    result = make_result(asked, found, found, identity(**{"split": "test", **changes}), **about)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(result.to_json())
    return folder
