"""Fetches pinned icon packages and rasterises them into sprite sheets: the raw material of every scene.

What lives here: the table of packages (version, hash, licence), the tarball reader, the rasteriser, `fetch_icons`.
What does not: how sprites become scenes (`atlas`, `renderer`), which nouns exist (`vocabulary`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vega_diffusion.errors import MissingFile, Unavailable, VegaError

SPRITE_PX = 128
SHEET_COLUMNS = 16
RASTER_PX = 256  # drawn larger than a sprite, so that trimming the margins never enlarges pixels


@dataclass(frozen=True)
class IconPackage:
    """One style of drawing: which package holds it and what it may be used for."""

    style: str
    package: str
    version: str
    sha256: str
    licence: str

    @property
    def tarball(self) -> str:
        """File name that `npm pack` gives this package."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


# The hashes are those of the published tarballs; a changed package is an error, never a silent change of the data.
PACKAGES: tuple[IconPackage, ...] = (
    IconPackage(
        "fluent3d",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT (Microsoft)",
    ),
    IconPackage(
        "fluentflat",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT (Microsoft)",
    ),
    IconPackage(
        "fluentline",
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
        "MIT (Microsoft)",
    ),
    IconPackage(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0 (Google)",
    ),
    IconPackage(
        "notov1",
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0 (Google)",
    ),
    IconPackage(
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0 (Twitter, Inc and other contributors)",
    ),
    IconPackage(
        "emojione",
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0 (EmojiTwo contributors)",
    ),
)


def fetch_icons(
    folder: Path,
    slugs: Iterable[str],
    *,
    tarballs: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Fetch every icon package, check its hash, rasterise the wanted sprites and write one sheet a style.

    Args:
        folder: Where the sheets and `index.json` go; an older set there is replaced only when the new one is whole.
        slugs: Icon names (shared by all sets), for example "hot-beverage".
        tarballs: Folder that already holds the tarballs; None asks `npm pack` for them.
        progress: Receives one line per package.

    Returns:
        `folder`.

    Raises:
        Unavailable: No npm on this machine, or it cannot reach its registry, or resvg-py is not installed.
        MissingFile: `tarballs` lacks a package.
        VegaError: A tarball whose hash is not the pinned one.
    """
    wanted = sorted(set(slugs))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".icons-") as temporary:
        work = Path(temporary)
        sheets = work / "sheets"
        sheets.mkdir()
        source = tarballs or _npm_pack(work, progress)
        blobs = {package.style: _checked_tarball(source, package) for package in PACKAGES}
        noto = _iconify(blobs["noto"])
        released = _iconify(blobs["fluentflat"])
        index: dict[str, object] = {"sprite_px": SPRITE_PX, "columns": SHEET_COLUMNS}
        styles: dict[str, object] = {}
        for package in PACKAGES:
            progress(f"rasterising {package.style}")
            draw = (
                _lobehub_reader(blobs["fluent3d"], noto, released)
                if package.style == "fluent3d"
                else _iconify_reader(blobs[package.style])
            )
            sprites = {slug: sprite for slug in wanted if (sprite := draw(slug)) is not None}
            write_sheet(sheets / f"{package.style}.webp", list(sprites.values()), quality=None)
            styles[package.style] = {
                "package": package.package,
                "version": package.version,
                "sha256": package.sha256,
                "licence": package.licence,
                "slugs": list(sprites),
            }
        index["styles"] = styles
        (sheets / "index.json").write_text(json.dumps(index, indent=1))
        _replace_folder(sheets, folder)
    return folder


def write_sheet(path: Path, sprites: list[Image.Image], quality: int | None) -> None:
    """Write sprites row by row into one WebP picture (quality None = lossless, alpha kept exactly)."""
    rows = -(-max(len(sprites), 1) // SHEET_COLUMNS)
    sheet = Image.new("RGBA", (SHEET_COLUMNS * SPRITE_PX, rows * SPRITE_PX))
    for number, sprite in enumerate(sprites):
        row, column = divmod(number, SHEET_COLUMNS)
        sheet.paste(sprite, (column * SPRITE_PX, row * SPRITE_PX))
    if quality is None:
        sheet.save(path, "WEBP", lossless=True, exact=True, method=0)
    else:
        sheet.save(path, "WEBP", quality=quality, alpha_quality=60, method=6)


def write_sample(source: Path, target: Path, slugs: Iterable[str], styles: Iterable[str], quality: int = 50) -> Path:
    """Write a small lossy copy of some sprites: what the package carries, so that tests and demos need no npm.

    Args:
        source: What `fetch_icons` wrote.
        target: Folder for the smaller sheets and their `index.json`.
        slugs: Icons to keep.
        styles: Styles to keep.
        quality: WebP quality, 0..100.
    """
    listing = json.loads((source / "index.json").read_text())
    keep = set(slugs)
    target.mkdir(parents=True, exist_ok=True)
    kept: dict[str, object] = {}
    for style in styles:
        entry = listing["styles"][style]
        with Image.open(source / f"{style}.webp") as picture:
            sheet = picture.convert("RGBA")
        rows = [number for number, slug in enumerate(entry["slugs"]) if slug in keep]
        write_sheet(target / f"{style}.webp", [_sprite(sheet, number) for number in rows], quality)
        kept[style] = {**entry, "slugs": [entry["slugs"][number] for number in rows]}
    index = {**listing, "styles": kept, "lossy_quality": quality}
    (target / "index.json").write_text(json.dumps(index, indent=1))
    return target


def _sprite(sheet: Image.Image, number: int) -> Image.Image:
    row, column = divmod(number, SHEET_COLUMNS)
    x, y = column * SPRITE_PX, row * SPRITE_PX
    return sheet.crop((x, y, x + SPRITE_PX, y + SPRITE_PX))


def _npm_pack(work: Path, progress: Callable[[str], None]) -> Path:
    """Let npm bring the tarballs (its own configuration says from where) and nothing else: no install, no scripts."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm: not found on this machine; install Node.js, or give the tarballs by --tarballs FOLDER")
    target = work / "tarballs"
    target.mkdir()
    for package in PACKAGES:
        name = f"{package.package}@{package.version}"
        progress(f"fetching {name}")
        done = subprocess.run(
            [npm, "pack", "--silent", "--ignore-scripts", name], cwd=target, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(
                f"npm pack {name}: failed ({reason}); check the network, or give the tarballs with --tarballs FOLDER"
            )
    return target


def _checked_tarball(folder: Path, package: IconPackage) -> bytes:
    path = folder / package.tarball
    try:
        blob = path.read_bytes()
    except OSError as error:
        remedy = f"run `npm pack {package.package}` there"
        raise MissingFile(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    digest = hashlib.sha256(blob).hexdigest()
    if digest != package.sha256:
        raise VegaError(
            f"{path}: sha256 is {digest}, allowed: {package.sha256} "
            f"({package.package} {package.version}); fetch the pinned version again"
        )
    return blob


def _iconify(blob: bytes) -> dict[str, dict]:
    """Return `icons.json` of an iconify package plus `chars.json` where it has one."""
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:gz") as tar:

        def load(name: str) -> dict:
            member = tar.extractfile(f"package/{name}")
            assert member is not None, name
            return json.load(member)

        names = set(tar.getnames())
        chars = load("chars.json") if "package/chars.json" in names else {}
        return {**load("icons.json"), "chars": chars}


def _icon_body(data: dict, slug: str) -> tuple[str, int, int] | None:
    """Return (SVG body, width, height) of an icon or of what its alias points to."""
    name = slug
    if name not in data["icons"]:
        alias = data.get("aliases", {}).get(slug)
        # Aliases that also turn or mirror the picture are not the same drawing: leave them out.
        if alias is None or set(alias) != {"parent"}:
            return None
        name = alias["parent"]
    icon = data["icons"].get(name)
    if icon is None:
        return None
    return icon["body"], icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))


def _iconify_reader(blob: bytes) -> Callable[[str], Image.Image | None]:
    data = _iconify(blob)
    try:
        import resvg_py
    except ImportError as error:
        raise Unavailable("resvg-py: not installed; pip install 'vega-diffusion[data]'") from error

    def draw(slug: str) -> Image.Image | None:
        found = _icon_body(data, slug)
        if found is None:
            return None
        body, width, height = found
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{RASTER_PX}" height="{RASTER_PX}" color="#000000">{body}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=RASTER_PX, height=RASTER_PX)
        return fit_sprite(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))

    return draw


def _lobehub_reader(blob: bytes, noto: dict, released: dict) -> Callable[[str], Image.Image | None]:
    """Read the 3D renders, which are named by code points.

    Only what Microsoft itself released is openly licensed, so a slug must also stand in the flat set.
    """
    tar = tarfile.open(fileobj=io.BytesIO(blob), mode="r:gz")  # noqa: SIM115 - lives as long as the reader
    members = {Path(name).stem.lower(): name for name in tar.getnames() if name.endswith(".webp")}
    points: dict[str, list[str]] = {}
    for code, name in noto["chars"].items():
        points.setdefault(name, []).append(code.lower())

    def draw(slug: str) -> Image.Image | None:
        if _icon_body(released, slug) is None:
            return None
        names = [slug, *([alias["parent"]] if (alias := noto.get("aliases", {}).get(slug)) else [])]
        codes = [code for name in names for code in points.get(name, [])]
        for code in codes:
            for candidate in (code, code.replace("-fe0f", ""), f"{code}-fe0f"):
                if candidate in members:
                    file = tar.extractfile(members[candidate])
                    assert file is not None
                    return fit_sprite(Image.open(io.BytesIO(file.read())).convert("RGBA"))
        return None

    return draw


def fit_sprite(picture: Image.Image) -> Image.Image:
    """Centre the drawing (its opaque part) in the square sprite, so that a box says where the object is."""
    alpha = picture.getchannel("A").point([255 if level > 8 else 0 for level in range(256)])
    box = alpha.getbbox()
    if box is None:
        return Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    cut = picture.crop(box)
    scale = (SPRITE_PX - 2) / max(cut.size)
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    # Premultiplied, because plain resampling of RGBA draws the hidden colour of clear pixels into the rim.
    resized = cut.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    sprite = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    sprite.paste(resized, ((SPRITE_PX - size[0]) // 2, (SPRITE_PX - size[1]) // 2))
    return sprite


def _replace_folder(new: Path, old: Path) -> None:
    """Put `new` where `old` is; `old` goes only after `new` has its place."""
    if old.exists():
        aside = old.with_name(f".{old.name}.old-{os.getpid()}")
        os.rename(old, aside)
        os.rename(new, old)
        shutil.rmtree(aside)
    else:
        os.rename(new, old)
