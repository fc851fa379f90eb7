"""Who draws and judges a prompt: a model (`ModelJob`), or the scene renderer (`RenderJob`) for the ceiling.

Jobs are plain data, so that several processes can each load what they need by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.evaluation.judgement import judge
from vega_diffusion.evaluation.renders import sample_atlas, scene_for
from vega_diffusion.evaluation.run_folder import JudgedPicture, picture_file, write_whole
from vega_diffusion.models.detections import Detection, Finding
from vega_diffusion.specs.evaluation import SuitePrompt
from vega_diffusion.specs.profile import ProfileName
from vega_diffusion.specs.request import GenerateRequest

if TYPE_CHECKING:
    from vega_diffusion.data.scenes.renderer import SceneRenderer
    from vega_diffusion.evaluation.run import Worker
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.inference.images import GeneratedImage

SIDE_PX = 128
"""The checker's pictures, and so the only size that can be evaluated."""

_ON_ACCELERATORS = 16  # prompts that are drawn together: 128 guided rows

RENDERS_VERSION = 1
"""Goes up when `renders.py` or the scene renderer draws other pixels: old ceilings are then not taken up."""


class Checker(Protocol):
    """What judges need of `models.checker.SceneChecker`."""

    def find(self, pixels: Tensor) -> list[Finding]:
        """Say what pictures `[B, 3, 128, 128]` in [-1, 1] show."""
        ...


@dataclass(frozen=True)
class DrawSettings:
    """What may be said about how a model draws; None takes the model's own."""

    num_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    profile: ProfileName | None = None
    precision: str | None = None

    def request(self, prompt: str, negative_prompt: str | None, seed: int, num_images: int) -> GenerateRequest:
        """Return the request for a prompt's pictures.

        Raises:
            InvalidValue: A setting is not allowed.
        """
        # Through plain data: a mistake then is one line about the field.
        return GenerateRequest.from_dict(
            {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                "seed": seed,
                "num_images": num_images,
                "num_steps": self.num_steps,
                "guidance_scale": self.guidance_scale,
                "sampler": self.sampler,
                "profile": self.profile,
                "precision": self.precision,
            }
        )


@dataclass(frozen=True)
class ModelJob:
    """A model that draws.

    Attributes:
        model: A name, a folder or a Hub id.
        digest: What its weights must be.
        device: Where to run.
        dtype: In which numbers.
        settings: How to draw.
        checker: Folder of the checker.
        checker_sha256: What its weights must be.
        folder: The run's.
    """

    model: str
    digest: str
    device: str
    dtype: str
    settings: DrawSettings
    checker: Path
    checker_sha256: str
    folder: Path

    def open(self) -> Worker:
        """Load model and checker."""
        from vega_diffusion.inference.engine import Engine

        engine = Engine.load(self.model, self.device, self.dtype, low_memory=False)
        return partial(self.work, engine, open_checker(self.checker, self.checker_sha256))

    def work(self, engine: Engine, checker: Checker, prompts: Sequence[SuitePrompt]) -> list[JudgedPicture]:
        """Draw some prompts' pictures, write them, judge them."""
        if len(prompts) == 1:
            return judge_pictures(prompts[0], self._drawn_alone(engine, prompts[0]), checker)
        drawn = self._drawn_together(engine, prompts)
        return [one for prompt in prompts for one in judge_pictures(prompt, drawn[prompt.id], checker)]

    def _drawn_alone(self, engine: Engine, prompt: SuitePrompt) -> list[Image.Image]:
        """Draw a prompt's pictures in one U-Net call."""
        # Its own number of pictures and nothing else decides what shares a U-Net call.
        engine.max_batch = len(prompt.seeds)
        request = self._request(engine, prompt)
        return [self._written(prompt, picture) for picture in engine.stream(request)]

    def _drawn_together(self, engine: Engine, prompts: Sequence[SuitePrompt]) -> dict[str, list[Image.Image]]:
        """Draw the pictures of several prompts in the same U-Net calls; returned by prompt, in the order of seeds."""
        from vega_diffusion.inference.backends.protocol import GUIDED_ROWS

        requests = [self._request(engine, prompt) for prompt in prompts]
        rows = GUIDED_ROWS * sum(request.num_images for request in requests)
        found: dict[str, dict[int, Image.Image]] = {prompt.id: {} for prompt in prompts}
        for number, picture in engine.stream_many(requests, max_rows=rows):
            prompt = prompts[number]
            found[prompt.id][picture.seed] = self._written(prompt, picture)
        return {prompt.id: [found[prompt.id][seed] for seed in prompt.seeds] for prompt in prompts}

    def _request(self, engine: Engine, prompt: SuitePrompt) -> GenerateRequest:
        plain = self.settings.request(prompt.prompt, None, 0, 1).resolved(engine.components.spec.generation)
        # Without guidance nothing can be moved away from.
        negative = prompt.negative_prompt if (plain.guidance_scale or 0) > 1 else None
        return self.settings.request(prompt.prompt, negative, prompt.seeds[0], len(prompt.seeds))

    def _written(self, prompt: SuitePrompt, picture: GeneratedImage) -> Image.Image:
        """Write a picture's file.

        Raises:
            VegaError: The model is not the one that the evaluation began with.
        """
        from vega_diffusion.inference.metadata import write_png
        from vega_diffusion.inference.samplers import public_name

        record = picture.record
        if record.model_digest != self.digest:
            raise VegaError(f"model: {self.model!r} has changed since the evaluation began; run the command again")
        path = self.folder / picture_file(prompt, picture.seed)
        write_png(picture.image, path, record, public_name(record.request.sampler or ""))
        return picture.image


@dataclass(frozen=True)
class RenderJob:
    """The scene renderer in a model's place, with the package's own sample of drawings: the same everywhere.

    Attributes:
        checker: Folder of the checker.
        checker_sha256: What its weights must be.
        folder: The run's.
    """

    checker: Path
    checker_sha256: str
    folder: Path

    def open(self) -> Worker:
        """Load sprites and checker."""
        from vega_diffusion.data.scenes.renderer import SceneRenderer

        return partial(self.work, SceneRenderer(sample_atlas()), open_checker(self.checker, self.checker_sha256))

    def work(self, renderer: SceneRenderer, checker: Checker, prompts: Sequence[SuitePrompt]) -> list[JudgedPicture]:
        """Render one scene a seed, write the pictures, judge them."""
        return [one for prompt in prompts for one in self._rendered(renderer, checker, prompt)]

    def _rendered(self, renderer: SceneRenderer, checker: Checker, prompt: SuitePrompt) -> list[JudgedPicture]:
        from io import BytesIO

        pixels = renderer.render([scene_for(prompt, seed) for seed in prompt.seeds])
        pictures = [to_picture(row) for row in pixels]
        for seed, picture in zip(prompt.seeds, pictures, strict=True):
            buffer = BytesIO()
            picture.save(buffer, "PNG")
            write_whole(self.folder / picture_file(prompt, seed), buffer.getvalue())
        return judge_pictures(prompt, pictures, checker)


def prompts_at_once(device: str) -> int:
    """Return how many prompts share U-Net calls: one on a CPU, where pictures are then the same in any order."""
    return 1 if device == "cpu" else _ON_ACCELERATORS


def open_checker(folder: Path, sha256: str) -> Checker:
    """Read a checker whose weights have that hash.

    Raises:
        VegaError: They have another, or the folder is damaged.
    """
    from vega_diffusion.models.checker import read_checker

    return read_checker(folder, sha256)


def renders_digest() -> str:
    """Return what names the renderer's pictures: the sprites' files and `RENDERS_VERSION`."""
    from vega_diffusion.data.scenes.atlas import sample_folder

    total = hashlib.sha256(f"renders {RENDERS_VERSION}\n".encode())
    for path in sorted(sample_folder().iterdir()):
        if path.suffix in (".webp", ".json"):
            total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def check_model(engine: Engine) -> None:
    """Check that a model draws pictures that the checker can read.

    Raises:
        InvalidValue: It draws another size.
    """
    size = engine.components.spec.generation
    if (size.width, size.height) != (SIDE_PX, SIDE_PX):
        raise InvalidValue(
            "model",
            f"{engine.components.name} ({size.width}x{size.height} px)",
            f"a model that draws {SIDE_PX}x{SIDE_PX} px, as the suite's checker reads them",
            "evaluate a model of the mini family",
        )


def judge_pictures(prompt: SuitePrompt, pictures: Sequence[Image.Image], checker: Checker) -> list[JudgedPicture]:
    """Judge a prompt's pictures, one a seed; what is judged is what the PNG files hold."""
    findings = checker.find(torch.stack([to_pixels(picture) for picture in pictures]))
    judged = []
    for seed, found in zip(prompt.seeds, findings, strict=True):
        # Rounded before it is judged, so that a stored finding gives the same verdict again.
        finding = rounded(found)
        verdict = judge(prompt, finding)
        judged.append(
            JudgedPicture(
                id=prompt.id,
                kind=prompt.kind,
                unseen=prompt.unseen,
                seed=seed,
                file=picture_file(prompt, seed),
                passed=verdict.passed,
                reasons=verdict.reasons,
                finding=finding,
            )
        )
    return judged


def to_pixels(picture: Image.Image) -> Tensor:
    """Return a picture as float32 `[3, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1


def to_picture(pixels: Tensor) -> Image.Image:
    """Return pixels `[3, H, W]` in [-1, 1] as an 8-bit picture."""
    levels = ((pixels + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def rounded(finding: Finding) -> Finding:
    """Return a finding with numbers of a few digits."""
    detections = []
    for one in finding.detections:
        x0, y0, x1, y1 = (round(float(edge), 2) for edge in one.box)
        noun_score, score = round(float(one.noun_score), 4), round(float(one.score), 4)
        detections.append(Detection(one.noun, noun_score, one.colour, (x0, y0, x1, y1), score))
    return Finding(tuple(detections), finding.background, finding.style)
