"""Pictures of an adapted model: drawn, judged by the frozen checker, and laid out on a sheet to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from vega_diffusion.models.detections import Finding

SEEDS = (910_000, 910_001)
"""Of every prompt's pictures; all of them count."""
SHEET = 24
COLUMNS = 8

Judged = tuple[str, "Image", bool]
"""Prompt, picture, whether what was learnt is recognised."""


def draw_and_judge(
    model: str, prompts: Sequence[str], recognised: Callable[[Finding], bool], say: Callable[[str], None]
) -> tuple[list[bool], list[Judged]]:
    """Draw every prompt with every seed and ask the checker.

    Args:
        model: A folder or a name.
        prompts: What to draw.
        recognised: Whether a finding shows what was learnt.
        say: Called with one line now and then.
    """
    import torch

    from vega_diffusion.evaluation.workers import to_pixels
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.models.checker import read_checker
    from vega_diffusion.specs.request import GenerateRequest

    engine = Engine.load(model, "cpu", "float32")
    engine.max_batch = len(SEEDS)
    checker = read_checker().eval()
    judged: list[Judged] = []
    for number, prompt in enumerate(prompts):
        if number % 20 == 0:
            say(f"drawing {number} of {len(prompts)}")
        request = GenerateRequest(prompt=prompt, seed=SEEDS[0], num_images=len(SEEDS))
        images = [made.image for made in engine.stream(request)]
        with torch.no_grad():
            findings = checker.find(torch.stack([to_pixels(image) for image in images]))
        judged += [(prompt, image, recognised(found)) for image, found in zip(images, findings, strict=True)]
    return [found for _, _, found in judged], judged


def share_interval(recognised: Sequence[bool]) -> str:
    """Return the 95 % interval of the share, "LOW to HIGH"; what is drawn are prompts with all their pictures."""
    from vega_diffusion.evaluation.bootstrap import intervals

    rates = [sum(recognised[at : at + len(SEEDS)]) / len(SEEDS) for at in range(0, len(recognised), len(SEEDS))]
    low, high = intervals({"share": rates})["share"]
    return f"{low} to {high}"


def write_sheet(judged: Sequence[Judged], path: Path) -> None:
    """Write a PNG of evenly chosen prompts' pictures, seeds in turn, each with its prompt and the verdict."""
    from PIL import Image as images
    from PIL import ImageDraw, ImageFont

    count = len(judged) // len(SEEDS)
    chosen = range(0, count, max(1, count // SHEET))[:SHEET]
    # One seed's pictures may be better than another's, so that those of one alone would flatter or disgrace a model.
    shown = [judged[at * len(SEEDS) + place % len(SEEDS)] for place, at in enumerate(chosen)]
    rows = -(-len(shown) // COLUMNS)
    sheet = images.new("RGB", (COLUMNS * 140, rows * 176), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, (prompt, picture, passed) in enumerate(shown):
        left, top = place % COLUMNS * 140 + 6, place // COLUMNS * 176 + 6
        sheet.paste(picture, (left, top))
        draw.text((left, top + 130), "yes" if passed else "no", "#15803d" if passed else "#c81e1e", font)
        words, line, lines = prompt.split(), "", []
        for word in words:
            if draw.textlength(f"{line} {word}", font) > 104:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        for number, text in enumerate([*lines, line][:3]):
            draw.text((left + 24, top + 130 + 12 * number), text, "#1f2328", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
