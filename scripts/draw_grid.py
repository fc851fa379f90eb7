"""Draws README's grid of pictures: fixed prompts, the same seed for all, none chosen by eye.

python scripts/draw_grid.py --output docs/images/grid.png
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vega_diffusion import Engine, GenerateRequest
from vega_diffusion.errors import run_script

PROMPTS = (
    "a cat",
    "a red bicycle",
    "a slice of pizza on a blue background",
    "a sunflower on a black background",
    "a penguin in the snow",
    "a cat next to a slice of pizza",
    "a dog left of a soccer ball",
    "a crown above a frog",
    "two lemons",
    "three green apples",
    "a small rocket at night",
    "a large owl, flat design",
    "a blue car and a yellow star",
    "a firefighter",
    "A cute cat eating a slice of pizza, stunning color scheme, masterpiece, illustration",
)
COLUMNS = 5
LABEL_PX = 46
GAP_PX = 8


def draw_grid(model: str, seed: int) -> Image.Image:
    """Draw every prompt with one seed and lay the pictures out with their prompts below."""
    engine = Engine.load(model)
    pictures = [engine.generate(GenerateRequest(prompt=prompt, seed=seed))[0].image for prompt in PROMPTS]
    width, height = pictures[0].size
    rows = -(-len(pictures) // COLUMNS)
    cell = (width + GAP_PX, height + LABEL_PX)
    grid = Image.new("RGB", (COLUMNS * cell[0] + GAP_PX, rows * cell[1] + GAP_PX), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(10)
    for number, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        row, column = divmod(number, COLUMNS)
        left, top = GAP_PX + column * cell[0], GAP_PX + row * cell[1]
        grid.paste(picture, (left, top))
        label = "\n".join(textwrap.wrap(prompt, max(8, width // 5), max_lines=3, placeholder=" ..."))
        pen.multiline_text((left, top + height + 2), label, fill="black", font=font, spacing=2)
    return grid


def write_grid(model: str, seed: int, output: Path) -> Path:
    """Write the grid as a PNG and return its path."""
    grid = draw_grid(model, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    grid.save(output, optimize=True)
    return output


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, draw, write the PNG, print its path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vega-mini", help="a name or a folder (default: vega-mini)")
    parser.add_argument("--seed", type=int, default=0, help="of every picture (default: 0)")
    parser.add_argument("--output", default="docs/images/grid.png", help="default: docs/images/grid.png")
    arguments = parser.parse_args(argv)
    return run_script(lambda: write_grid(arguments.model, arguments.seed, Path(arguments.output)))


if __name__ == "__main__":
    sys.exit(main())
