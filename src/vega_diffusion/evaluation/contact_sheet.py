"""Contact sheets: every picture of a run with its prompt and a tick or a cross, so that people can disagree."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import get_args

from PIL import Image, ImageDraw, ImageFont

from vega_diffusion.evaluation.results import EvaluationResult
from vega_diffusion.evaluation.run_folder import JudgedPicture, write_whole
from vega_diffusion.specs.evaluation import SuiteKind, SuitePrompt

PROMPTS_PER_SHEET = 18
_PICTURE_PX = 128
_GAP_PX = 6
_MARGIN_PX = 24
_HEADER_PX = 64
_MARK_PX = 44  # mark and reason under a picture
_TITLE_PX = 30  # prompt under the pictures
_BLOCK_GAP_PX = 28
_INK, _PALE, _GOOD, _BAD, _RULE = "#1f2328", "#6b7280", "#15803d", "#c81e1e", "#e5e7eb"


def write_sheets(
    folder: Path, prompts: Sequence[SuitePrompt], judged: Sequence[JudgedPicture], result: EvaluationResult
) -> tuple[Path, ...]:
    """Write the sheets of all kinds into `folder/sheets`; those that are there are kept.

    Args:
        folder: The run's folder, where the pictures lie.
        prompts: In the order of the sheets.
        judged: The pictures' verdicts.
        result: For the headings.

    Returns:
        The files, kind by kind.
    """
    by_id: dict[str, list[JudgedPicture]] = {}
    for one in judged:
        by_id.setdefault(one.id, []).append(one)
    home = folder / "sheets"
    home.mkdir(exist_ok=True)
    paths = []
    for kind in get_args(SuiteKind):
        asked = [prompt for prompt in prompts if prompt.kind == kind]
        pages = [asked[first : first + PROMPTS_PER_SHEET] for first in range(0, len(asked), PROMPTS_PER_SHEET)]
        for number, page in enumerate(pages, 1):
            path = home / f"{kind}-{number}.png"
            paths.append(path)
            if not path.exists():
                title = f"{kind.replace('_', ' ')}  {_percent(result, kind)}"
                detail = f"{_name(result)}   sheet {number} of {len(pages)}"
                sheet = draw_sheet(folder, [(prompt, by_id[prompt.id]) for prompt in page], title, detail)
                buffer = BytesIO()
                sheet.save(buffer, "PNG")
                write_whole(path, buffer.getvalue())
    return tuple(paths)


def draw_sheet(
    folder: Path, rows: Sequence[tuple[SuitePrompt, Sequence[JudgedPicture]]], title: str, detail: str
) -> Image.Image:
    """Draw one sheet: blocks of a prompt's pictures side by side, two blocks a line.

    Args:
        folder: Where the pictures lie.
        rows: Prompts with their judged pictures.
        title: First line of the heading.
        detail: Second line.
    """
    across = max(len(judged) for _, judged in rows)
    columns = 2 if across > 2 else 3
    block_width = across * _PICTURE_PX + (across - 1) * _GAP_PX
    block_height = _PICTURE_PX + _MARK_PX + _TITLE_PX
    lines = -(-len(rows) // columns)
    width = 2 * _MARGIN_PX + columns * block_width + (columns - 1) * _BLOCK_GAP_PX
    height = _HEADER_PX + lines * (block_height + _BLOCK_GAP_PX) + _MARGIN_PX
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN_PX, 14), title, fill=_INK, font=_font(20))
    pen.text((_MARGIN_PX, 40), detail, fill=_PALE, font=_font(12))
    for number, (prompt, judged) in enumerate(rows):
        line, column = divmod(number, columns)
        left = _MARGIN_PX + column * (block_width + _BLOCK_GAP_PX)
        top = _HEADER_PX + line * (block_height + _BLOCK_GAP_PX)
        for place, one in enumerate(judged):
            x = left + place * (_PICTURE_PX + _GAP_PX)
            with Image.open(folder / one.file) as picture:
                sheet.paste(picture.convert("RGB"), (x, top))
            pen.rectangle((x, top, x + _PICTURE_PX - 1, top + _PICTURE_PX - 1), outline=_RULE)
            _verdict(pen, x, top + _PICTURE_PX + 5, one)
        foot = top + _PICTURE_PX + _MARK_PX
        pen.text((left, foot), _fitted(pen, prompt, block_width), fill=_INK, font=_font(14))
        pen.line((left, foot + _TITLE_PX - 6, left + block_width, foot + _TITLE_PX - 6), fill=_RULE)
    return sheet


def _verdict(pen: ImageDraw.ImageDraw, x: int, y: int, judged: JudgedPicture) -> None:
    """Draw a tick, or a cross with the reasons."""
    if judged.passed:
        pen.line((x + 2, y + 7, x + 6, y + 11, x + 14, y + 1), fill=_GOOD, width=3, joint="curve")
        return
    pen.line((x + 2, y + 1, x + 12, y + 11), fill=_BAD, width=3)
    pen.line((x + 12, y + 1, x + 2, y + 11), fill=_BAD, width=3)
    text = textwrap.wrap("; ".join(judged.reasons), 20, max_lines=3, placeholder=" ...")
    pen.multiline_text((x + 20, y - 1), "\n".join(text), fill=_PALE, font=_font(10), spacing=2)


def _fitted(pen: ImageDraw.ImageDraw, prompt: SuitePrompt, width: int) -> str:
    """Return the prompt (and whether its combination is new to the model), cut where it would run over."""
    note = "   [unseen]" if prompt.unseen else ""
    text = prompt.prompt
    while pen.textlength(text + note, font=_font(14)) > width:
        text = text.removesuffix(" ...")[:-1].rstrip() + " ..."
    return text + note


def _percent(result: EvaluationResult, kind: SuiteKind) -> str:
    score = (result.kinds | result.rows)[kind]
    ceiling = (result.ceiling.kinds | result.ceiling.rows).get(kind)
    return f"{score:.0%}" + ("" if ceiling is None else f"   (real renders: {ceiling:.0%})")


def _name(result: EvaluationResult) -> str:
    identity = result.identity
    partial = ", only some prompts" if result.partial else ""
    return f"{identity.model} ({identity.model_digest[:10]})   {identity.suite}-{identity.split}{partial}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
