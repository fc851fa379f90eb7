"""`vega data`: fetch icons, write captioned scenes, check a folder of pictures and captions."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.errors import InvalidValue

SUBCOMMANDS = {
    "icons": "fetch the pinned icon packages and draw their sprites",
    "scenes": "write captioned scenes as a folder of pictures",
    "check": "look through a folder of pictures and captions",
}


def run(argv: list[str]) -> int:
    """Run one subcommand.

    Returns:
        0 done; 2 where `check` found something to mend.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = ["usage: vega data SUBCOMMAND [options]    (vega data SUBCOMMAND --help lists its options)", ""]
        print("\n".join(lines + [f"  {name:<8} {text}" for name, text in SUBCOMMANDS.items()]))
        return 0 if argv else 2
    match argv[0]:
        case "icons":
            return run_verb("data icons", icons, argv[1:])
        case "scenes":
            return run_verb("data scenes", scenes, argv[1:])
        case "check":
            return run_verb("data check", check, argv[1:])
        case other:
            raise InvalidValue("subcommand", other, ", ".join(SUBCOMMANDS), "see vega data --help")


def icons(
    output: Annotated[str | None, text("FOLDER", "$VEGA_HOME/icons")] = None,
    tarballs: Annotated[str | None, text("FOLDER", "ask npm")] = None,
    json: bool = False,
) -> int:
    """Fetch the pinned icon packages from npm, check their hashes and draw the sprites of the vocabulary.

    Args:
        output: Folder for the sprite sheets; training looks for them in the default one.
        tarballs: Folder that holds the packages already.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.data.scenes.icons import PACKAGES, fetch_icons
    from vega_diffusion.data.scenes.vocabulary import load_vocabulary
    from vega_diffusion.training.run_directory import vega_home

    folder = Path(output).expanduser() if output else vega_home() / "icons"
    source = Path(tarballs).expanduser() if tarballs else None
    fetch_icons(folder, load_vocabulary().slugs, tarballs=source, progress=_say)
    sprites = {
        style: len(entry["slugs"])
        for style, entry in jsonlib.loads((folder / "index.json").read_text())["styles"].items()
    }
    report = {"folder": str(folder), "sprites": sprites, "packages": {p.package: p.version for p in PACKAGES}}
    if json:
        print(jsonlib.dumps(report))
    else:
        print(f"{sum(sprites.values())} sprites of {len(sprites)} styles in {folder}")
    return 0


def scenes(
    count: Annotated[int, tyro.conf.arg(metavar="N")],
    output: Annotated[str, tyro.conf.arg(metavar="FOLDER")],
    seed: int = 0,
    split: str = "train",
    icons: Annotated[str | None, text("FOLDER", "$VEGA_HOME/icons, else the sample in the package")] = None,
    json: bool = False,
) -> int:
    """Write captioned scenes: PNG files, and metadata.jsonl with caption and exact specification.

    An interrupted call goes on where it stopped; with a larger count the folder grows.

    Args:
        count: How many scenes.
        output: Folder for them, new or begun by the same command.
        seed: Names the stream of scenes.
        split: train, held-out, dev, test or all.
        icons: Folder that vega data icons filled.
        json: Print one JSON object as the last line.
    """
    from tqdm import tqdm

    from vega_diffusion.data.scene_images import icons_folder
    from vega_diffusion.data.scenes.atlas import SpriteAtlas
    from vega_diffusion.data.scenes.folder import write_scene_folder
    from vega_diffusion.data.scenes.scene import STYLES
    from vega_diffusion.data.scenes.vocabulary import load_vocabulary
    from vega_diffusion.training.run_directory import vega_home

    def load_atlas() -> SpriteAtlas:
        source = icons_folder(icons, vega_home())
        return SpriteAtlas.load(source, styles=STYLES, slugs=load_vocabulary().slugs)

    folder = Path(output).expanduser()
    with tqdm(total=count, unit="scene", file=sys.stderr, disable=None) as bar:
        result = write_scene_folder(folder, load_atlas, count=count, seed=seed, split=split, progress=bar.update)
    report = {"folder": str(folder), "count": count, "seed": seed, "split": split, **result}
    kept = f" ({result['kept']} were there already)" if result["kept"] else ""
    print(jsonlib.dumps(report) if json else f"{count} scenes in {folder}{kept}")
    return 0


def check(
    folder: Annotated[str, tyro.conf.Positional, text("FOLDER")],
    /,
    min_size: Annotated[int, tyro.conf.arg(metavar="PX")] = 128,
    caption_column: str = "text",
    json: bool = False,
) -> int:
    """Look for unreadable, doubled, small and uncaptioned pictures; changes nothing. Exit code 2 if there are any.

    Args:
        folder: Folder of pictures with metadata.jsonl, metadata.csv or one text file a picture.
        min_size: Shortest side that a picture should have.
        caption_column: Column of the metadata that holds the caption.
        json: Print one JSON object as the last line.
    """
    from tqdm import tqdm

    from vega_diffusion.data.check import check_folder

    with tqdm(unit="picture", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = check_folder(
            Path(folder).expanduser(), min_size_px=min_size, caption_column=caption_column, progress=progress
        )
    if json:
        print(jsonlib.dumps(report.to_dict()))
        return 2 if report.problems else 0
    print(f"{report.num_images} pictures, {report.num_captions} with a caption")
    for kind in ("unreadable", "duplicates", "missing_captions", "missing_images", "too_small"):
        found: list = getattr(report, kind)
        if found:
            shown = [" = ".join(item) if isinstance(item, list) else item for item in found[:5]]
            more = f", and {len(found) - 5} more" if len(found) > 5 else ""
            print(f"{kind.replace('_', ' ')}: {len(found)}: {', '.join(shown)}{more}")
    print("sizes:")
    for size, number in list(report.sizes.items())[:10]:
        bar_length = max(1, round(40 * number / report.num_images))
        print(f"  {size:>11} {number:>8} {'#' * bar_length}")
    if len(report.sizes) > 10:
        print(f"  and {len(report.sizes) - 10} other sizes")
    print("nothing to mend" if not report.problems else "mend these before training")
    return 2 if report.problems else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
