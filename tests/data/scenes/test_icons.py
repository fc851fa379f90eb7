"""Icon packages: pinned hashes, aliases, licences and trimming, on tiny tarballs made here."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vega_diffusion.data.scenes import icons
from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.errors import MissingFile, VegaError

SQUARE = '<rect x="4" y="8" width="8" height="4" fill="#ff0000"/>'


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def webp(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a tarball per style and pin their hashes in place of the published ones."""
    pinned = []
    for package in icons.PACKAGES:
        if package.style == "fluent3d":
            blob = tarball({"assets/1f431.webp": webp("#00ff00"), "assets/1f9dc.webp": webp("#0000ff")})
        else:
            drawn = {"cat": {"body": SQUARE}}
            if package.style != "fluentflat":
                drawn["mermaid"] = {"body": SQUARE}
            listing = {"icons": drawn, "aliases": {"kitty": {"parent": "cat"}, "tac": {"parent": "cat", "hFlip": True}}}
            chars = {"1f431": "cat", "1f9dc": "mermaid"}
            blob = tarball(
                {
                    "icons.json": json.dumps(listing | {"width": 16, "height": 16}).encode(),
                    "chars.json": json.dumps(chars).encode(),
                }
            )
        (tmp_path / package.tarball).write_bytes(blob)
        pinned.append(replace(package, sha256=hashlib.sha256(blob).hexdigest()))
    monkeypatch.setattr(icons, "PACKAGES", tuple(pinned))
    return tmp_path


def test_sprites_are_trimmed_centred_and_found_by_alias(packages: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    folder = icons.fetch_icons(tmp_path / "icons", ["cat", "kitty", "tac", "unknown"], tarballs=packages)
    atlas = SpriteAtlas.load(folder)
    assert {slug for style, slug in atlas.index if style == "noto"} == {"cat", "kitty"}
    alpha = atlas.sprites[atlas.row("noto", "cat"), 3].float()
    rows, columns = alpha.amax(1).nonzero(), alpha.amax(0).nonzero()
    # 8 x 4 units become 126 x 63 px in the middle of the sprite.
    assert (int(columns.min()), int(columns.max())) == (1, 126)
    assert (int(rows.min()), int(rows.max())) == pytest.approx((32, 95), abs=1)


def test_3d_pictures_are_used_only_where_their_maker_released_them(packages: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    atlas = SpriteAtlas.load(icons.fetch_icons(tmp_path / "icons", ["cat", "mermaid"], tarballs=packages))
    assert ("fluent3d", "cat") in atlas.index
    assert ("noto", "mermaid") in atlas.index
    assert ("fluent3d", "mermaid") not in atlas.index


def test_a_changed_tarball_is_refused_and_the_old_sheets_stay(packages: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    folder = icons.fetch_icons(tmp_path / "icons", ["cat"], tarballs=packages)
    before = (folder / "index.json").read_bytes()
    broken = packages / icons.PACKAGES[3].tarball
    broken.write_bytes(broken.read_bytes() + b"x")
    with pytest.raises(VegaError, match="sha256"):
        icons.fetch_icons(folder, ["cat", "mermaid"], tarballs=packages)
    assert (folder / "index.json").read_bytes() == before
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".icons-")]


def test_a_missing_tarball_is_named(packages: Path, tmp_path: Path) -> None:
    (packages / icons.PACKAGES[0].tarball).unlink()
    with pytest.raises(MissingFile, match="npm pack"):
        icons.fetch_icons(tmp_path / "icons", ["cat"], tarballs=packages)


def test_the_table_names_a_licence_and_a_hash_for_every_style() -> None:
    assert [package.style for package in icons.PACKAGES] == [
        "fluent3d", "fluentflat", "fluentline", "noto", "notov1", "twemoji", "emojione",
    ]  # fmt: skip
    for package in icons.PACKAGES:
        assert len(package.sha256) == 64
        assert package.licence.split()[0] in {"MIT", "Apache-2.0", "CC-BY-4.0"}
