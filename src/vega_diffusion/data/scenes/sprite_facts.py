"""What sprites look like, measured once: which colours they can be given, on which backgrounds they can be seen.

The table `sprite_facts.json` beside this module is what `measure_sprites` found in the pinned icon packages; it is
read without torch and without icons, so that captions can be sampled anywhere. After a change of the icons, of the
recolouring or of the backgrounds: `python -m vega_diffusion.data.scenes.sprite_facts ICON-FOLDER` writes it anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vega_diffusion.data.scenes.scene import (
    BACKGROUNDS,
    HELD_OUT_STYLE,
    HUES,
    LIGHT_BACKGROUNDS,
    LINE_STYLE,
    PLACES,
    STYLES,
)
from vega_diffusion.data.scenes.vocabulary import load_vocabulary

if TYPE_CHECKING:
    import numpy as np

    from vega_diffusion.data.scenes.atlas import SpriteAtlas

ALL_BACKGROUNDS: tuple[str, ...] = (*BACKGROUNDS, *PLACES)
COLOURS: tuple[str | None, ...] = (None, *HUES)

# Colour differences are CIE Lab (1976). 28 is plain to see even where a sprite is shaded.
VISIBLE_DIFFERENCE = 28.0
LEVEL_PX = 32  # measured on this level of the pyramid: about what a small object has left
RIM_PX = 2
# Not everything made green is still a picture of the noun: people keep their skin, a rainbow all its colours.
NEVER_RECOLOURED = frozenset(
    {"old woman", "princess", "santa claus", "rainbow", "clown face", "traffic light", "globe"}
)


@dataclass(frozen=True)
class SpriteFacts:
    """The table.

    Args:
        rows: "style/slug" -> one hexadecimal number per entry of `COLOURS`: bit i says that the sprite in this colour
            stands out from `ALL_BACKGROUNDS[i]`. A colour that the sprite cannot take has the number 0.
    """

    rows: Mapping[str, Sequence[str]]

    @cached_property
    def _backgrounds(self) -> dict[tuple[str, str, str | None], frozenset[str]]:
        table: dict[tuple[str, str, str | None], frozenset[str]] = {}
        for key, numbers in self.rows.items():
            style, _, slug = key.partition("/")
            for colour, number in zip(COLOURS, numbers, strict=True):
                bits = int(number, 16)
                seen = frozenset(name for bit, name in enumerate(ALL_BACKGROUNDS) if bits >> bit & 1)
                table[style, slug, colour] = seen
        return table

    def backgrounds(self, style: str, slug: str, colour: str | None) -> frozenset[str]:
        """Return the backgrounds from which a sprite in this colour stands out (empty: it cannot have the colour)."""
        return self._backgrounds.get((style, slug, colour), frozenset())

    def colours(self, style: str, slug: str) -> tuple[str, ...]:
        """Return the object colours that a sprite can be given."""
        return tuple(colour for colour in HUES if self.backgrounds(style, slug, colour))

    def contrast_ok(self, style: str, slug: str, colour: str | None, background: str) -> bool:
        """Say whether a sprite in this colour can be seen on a background."""
        return background in self.backgrounds(style, slug, colour)


@cache
def load_sprite_facts() -> SpriteFacts:
    """Read the committed table (once)."""
    text = (files("vega_diffusion.data.scenes") / "sprite_facts.json").read_text(encoding="utf-8")
    return SpriteFacts(json.loads(text))


def measure_sprites(atlas: SpriteAtlas) -> SpriteFacts:
    """Measure every sprite of the vocabulary that an atlas holds."""
    vocabulary = load_vocabulary()
    rows: dict[str, Sequence[str]] = {}
    for noun in vocabulary.nouns.values():
        for style in (*STYLES, HELD_OUT_STYLE):
            for slug in noun.drawings(style):
                if (style, slug) in atlas.index:
                    fixed = noun.person or noun.name in NEVER_RECOLOURED or style == LINE_STYLE
                    sprite = atlas.pyramid[LEVEL_PX][atlas.index[style, slug]].cpu().numpy()
                    rows[f"{style}/{slug}"] = _measure(sprite, style, recolourable=not fixed)
    return SpriteFacts(dict(sorted(rows.items())))


def write_facts(facts: SpriteFacts, path: Path) -> None:
    """Write the table, one sprite a line."""
    lines = [f" {json.dumps(key)}: {json.dumps(list(row), separators=(',', ':'))}" for key, row in facts.rows.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def visible_backgrounds(sprite: np.ndarray, style: str = HELD_OUT_STYLE) -> tuple[str, ...]:
    """Return the backgrounds from which a sprite in its own colours stands out.

    Args:
        sprite: uint8 [4, H, W] premultiplied, at `LEVEL_PX`.
        style: `LINE_STYLE` keeps to light backgrounds.
    """
    bits = int(_measure(sprite, style, recolourable=False)[0], 16)
    return tuple(name for bit, name in enumerate(ALL_BACKGROUNDS) if bits >> bit & 1)


def _measure(sprite: np.ndarray, style: str, *, recolourable: bool) -> list[str]:
    """Return the row of one sprite, uint8 [4, H, W] premultiplied."""
    import numpy as np
    import torch

    from vega_diffusion.data.scenes.atlas import dominant_hue_share, recolour
    from vega_diffusion.data.scenes.renderer import pure_hue

    solid = sprite[3] > 128
    rim = solid & ~_shrink(solid, RIM_PX)
    coloured, near = dominant_hue_share(sprite)
    can = recolourable and coloured >= 0.6 and near >= 0.85
    row = []
    for colour in COLOURS:
        pixels = sprite.astype(np.float32) / 255
        if colour is not None:
            if not can:
                row.append("0")
                continue
            pixels = recolour(torch.from_numpy(pixels), torch.tensor(pure_hue(colour))).numpy()
        rgb = pixels[:3] / np.maximum(pixels[3:], 1e-6)
        lab = _lab(np.moveaxis(rgb, 0, -1))
        if colour is not None and not _looks(rgb[:, solid].mean(1), colour):
            row.append("0")
            continue
        bits = 0
        for bit, background in enumerate(ALL_BACKGROUNDS):
            allowed = style != LINE_STYLE or background in LIGHT_BACKGROUNDS
            if allowed and _stands_out(lab, solid, rim, _background_colours(background)):
                bits |= 1 << bit
        row.append(f"{bits:x}")
    return row


def _stands_out(lab: np.ndarray, solid: np.ndarray, rim: np.ndarray, colours: np.ndarray) -> bool:
    """Most of the outline differs from the background, or some of it and most of the inside."""
    import numpy as np

    difference = np.linalg.norm(lab[None] - colours[:, None, None], axis=-1)
    seen = (difference > VISIBLE_DIFFERENCE).mean(0)
    outline, inside = float(seen[rim].mean()), float(seen[solid].mean())
    return outline >= 0.65 or (outline >= 0.4 and inside >= 0.65)


def _looks(rgb: np.ndarray, colour: str) -> bool:
    """A recoloured sprite must still be bright and pure enough to be called by its colour (no brown "yellow")."""
    import colorsys

    _, saturation, value = colorsys.rgb_to_hsv(*(float(part) for part in rgb))
    darkest = {"yellow": 0.8, "orange": 0.8, "pink": 0.72}.get(colour, 0.42)
    return value >= darkest and saturation >= (0.55 if colour in ("yellow", "orange") else 0.42)


@cache
def _background_colours(name: str) -> np.ndarray:
    """Return CIE Lab colours [N, 3] that stand for a background: one, or a grid over the middle of a place."""
    import numpy as np

    if name in BACKGROUNDS:
        return _lab(np.array([BACKGROUNDS[name]], np.float32) / 255)
    from vega_diffusion.data.scenes.places import place_picture

    cut = place_picture(name)[:, 24:120:24, 24:120:24]
    return _lab(np.moveaxis(cut, 0, -1).reshape(-1, 3))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB in [0, 1], [..., 3], to CIE Lab (D65)."""
    import numpy as np

    rgb = np.clip(rgb, 0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _shrink(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode a mask by `steps` pixels (4-neighbourhood; outside counts as empty)."""
    import numpy as np

    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def main(arguments: Sequence[str]) -> None:
    """Measure the sprites in a folder of `vega data icons` and write the table into the package."""
    from vega_diffusion.data.scenes.atlas import SpriteAtlas

    facts = measure_sprites(SpriteAtlas.load(Path(arguments[0])))
    write_facts(facts, Path(__file__).with_name("sprite_facts.json"))


if __name__ == "__main__":
    main(sys.argv[1:])
