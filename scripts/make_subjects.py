r"""Draw the subjects: one cat and six faces that no generator of the mini family sees before it is adapted to them.

    python scripts/make_subjects.py ICON-FOLDER

ICON-FOLDER is what `vega data icons` filled (for the cat). The faces come from DiceBear's Open Peeps (design: CC0),
which Node draws as SVG from fixed seeds; npm brings the two pinned packages, and their hashes are checked. Sprites and
`subjects.json` go into the package. Needs the extra `data`, npm and Node 20 or newer.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vega_diffusion.data.scenes import subjects
from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.icons import RASTER_PX, fit_sprite
from vega_diffusion.data.scenes.scene import HELD_OUT_STYLE
from vega_diffusion.data.scenes.sprite_facts import LEVEL_PX, visible_backgrounds
from vega_diffusion.errors import Unavailable, VegaError, run_script

PACKAGES = {
    "core": ("9.4.3", "6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d"),
    "open-peeps": ("9.4.3", "65b664ec00dc69c068051461f2b5bd97c8335af676e36c284e906a3017c23d4f"),
}
DESIGN_LICENCE = "License: CC0 1.0"  # what the package's LICENSE must say under "# Design"
# Name -> seed; chosen so that the six tell apart at 30 px (hair, glasses, beard, skin, clothes).
FACES = {
    "face with sunglasses": "vega-14",
    "face with glasses": "vega-18",
    "face with beard": "vega-19",
    "face with white hair": "vega-16",
    "face with mohawk": "vega-28",
    "face with long hair": "vega-27",
}
DRAW = """
import { createAvatar } from '@dicebear/core';
import * as style from '@dicebear/open-peeps';
const faces = JSON.parse(process.argv[2]);
const draw = (seed) => createAvatar(style, { seed, maskProbability: 0 }).toString();
const drawn = Object.entries(faces).map(([name, seed]) => [name, draw(seed)]);
console.log(JSON.stringify(Object.fromEntries(drawn)));
"""


def fetch(work: Path, name: str, version: str, sha256: str) -> None:
    """Put a pinned package of DiceBear into `work/node_modules`.

    Raises:
        Unavailable: npm is missing or cannot fetch it.
        VegaError: The tarball or its licence is not the expected one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm: not found on this machine; install Node.js")
    full = f"@dicebear/{name}@{version}"
    done = subprocess.run([npm, "pack", "--silent", "--ignore-scripts", full], cwd=work, capture_output=True, text=True)
    tarball = work / f"dicebear-{name}-{version}.tgz"
    if done.returncode or not tarball.is_file():
        raise Unavailable(f"npm pack {full}: failed; check the network")
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != sha256:
        raise VegaError(f"{tarball.name}: sha256 is {found}, allowed: {sha256}; fetch the pinned version again")
    with tarfile.open(tarball) as tar:
        tar.extractall(work / name, filter="data")
    target = work / "node_modules" / "@dicebear" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (work / name / "package").rename(target)
    if name != "core" and DESIGN_LICENCE not in (target / "LICENSE").read_text(encoding="utf-8"):
        raise VegaError(f"{full}: its design is no longer under CC0; allowed: CC0 1.0; choose another style")


def draw_faces() -> dict[str, Image.Image]:
    """Return the faces as sprites."""
    import resvg_py

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name, (version, sha256) in PACKAGES.items():
            fetch(work, name, version, sha256)
        (work / "draw.mjs").write_text(DRAW, encoding="utf-8")
        done = subprocess.run(
            ["node", "draw.mjs", json.dumps(FACES)], cwd=work, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise Unavailable(f"node: cannot draw the faces ({done.stderr.strip().splitlines()[-1]}); install Node.js 20")
    faces = {}
    for name, svg in json.loads(done.stdout).items():
        png = resvg_py.svg_to_bytes(svg_string=svg, width=RASTER_PX, height=RASTER_PX)
        faces[name] = fit_sprite(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    return faces


def read_cat(icons: Path) -> Image.Image:
    """Return Emojione's black-and-white cat."""
    atlas = SpriteAtlas.load(icons, styles=[HELD_OUT_STYLE], slugs=["cat"])
    pixels = atlas.sprites[0].permute(1, 2, 0).contiguous().numpy()
    return Image.frombytes("RGBa", pixels.shape[1::-1], pixels.tobytes()).convert("RGBA")


def entry(name: str, sprite: Image.Image, source: str, licence: str, noun: str | None) -> dict[str, object]:
    """Write one sprite and return its line of `subjects.json`."""
    path = subjects.folder() / f"{name.replace(' ', '-')}.png"
    path.parent.mkdir(exist_ok=True)
    sprite.save(path, optimize=True)
    side = sprite.width // LEVEL_PX
    pixels = torch.from_numpy(np.asarray(sprite.convert("RGBa")).copy()).permute(2, 0, 1).float()
    small = torch.nn.functional.avg_pool2d(pixels[None], side)[0].round().byte().numpy()
    seen = list(visible_backgrounds(small))
    return {"file": path.name, "noun": noun, "source": source, "licence": licence, "backgrounds": seen}


def make(icons: Path) -> Path:
    """Draw all subjects and return the table's path."""
    source = f"DiceBear @dicebear/open-peeps {PACKAGES['open-peeps'][0]} (Open Peeps by Pablo Stanley)"
    table = {
        subjects.CAT: entry(
            subjects.CAT, read_cat(icons), "@iconify-json/emojione 1.2.3 (EmojiTwo)", "CC-BY 4.0", "cat"
        )
    }
    for name, sprite in draw_faces().items():
        table[name] = entry(name, sprite, source, "CC0 1.0", None)
    path = subjects.folder() / "subjects.json"
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("icons", type=Path)
    given = parser.parse_args(argv)
    return run_script(lambda: make(given.icons))


if __name__ == "__main__":
    sys.exit(main())
