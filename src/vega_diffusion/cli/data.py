"""`vega data`: fetch icons and pictures, write captioned scenes, check and curate pictures with captions."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.errors import InvalidValue, VegaError

if TYPE_CHECKING:
    from vega_diffusion.data.scenes.grammar import SceneMix

SUBCOMMANDS = {
    "icons": "fetch the pinned icon packages and draw their sprites",
    "scenes": "write captioned scenes as a folder of pictures",
    "check": "look through a folder of pictures and captions",
    "curate": "say what filters would leave of a folder, of shards or of a data set",
    "download": "fetch the pictures of a table of addresses into shards",
}


def run(argv: list[str]) -> int:
    """Run one subcommand.

    Returns:
        0 done; 2 where `check` found something to mend.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = ["usage: vega data SUBCOMMAND [options]    (vega data SUBCOMMAND --help lists its options)", ""]
        print("\n".join(lines + [f"  {name:<9} {text}" for name, text in SUBCOMMANDS.items()]))
        return 0 if argv else 2
    match argv[0]:
        case "icons":
            return run_verb("data icons", icons, argv[1:])
        case "scenes":
            return run_verb("data scenes", scenes, argv[1:])
        case "check":
            return run_verb("data check", check, argv[1:])
        case "curate":
            return run_verb("data curate", curate, argv[1:])
        case "download":
            return run_verb("data download", download, argv[1:])
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
    filter: Annotated[str | None, text("NAME", "none")] = None,
    subject: Annotated[str | None, text("NAME", "none")] = None,
    mix: Annotated[str | None, text("RECIPE", "that of the grammar")] = None,
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
        filter: Put all pictures behind a filter style: neon, blueprint, sketch or pixel.
        subject: Show this subject alone in every scene, as "black-and-white cat".
        mix: Draw what a recipe's [data.mix] says, as often.
        icons: Folder that vega data icons filled.
        json: Print one JSON object as the last line.
    """
    from tqdm import tqdm

    from vega_diffusion.data.scene_images import icons_folder
    from vega_diffusion.data.scenes.atlas import SpriteAtlas
    from vega_diffusion.data.scenes.folder import write_scene_folder
    from vega_diffusion.data.scenes.scene import STYLES
    from vega_diffusion.data.scenes.subjects import find_subject
    from vega_diffusion.data.scenes.vocabulary import load_vocabulary
    from vega_diffusion.training.run_directory import vega_home

    def load_atlas() -> SpriteAtlas:
        source = icons_folder(icons, vega_home())
        return SpriteAtlas.load(source, styles=STYLES, slugs=load_vocabulary().slugs)

    folder = Path(output).expanduser()
    with tqdm(total=count, unit="scene", file=sys.stderr, disable=None) as bar:
        result = write_scene_folder(
            folder,
            load_atlas,
            count=count,
            seed=seed,
            split=split,
            mix=None if mix is None else _mix_of(Path(mix)),
            filter_name=filter,
            subject=None if subject is None else find_subject(subject),
            progress=bar.update,
        )
    report = {"folder": str(folder), "count": count, "seed": seed, "split": split, **result}
    kept = f" ({result['kept']} were there already)" if result["kept"] else ""
    print(jsonlib.dumps(report) if json else f"{count} scenes in {folder}{kept}")
    return 0


def _mix_of(path: Path) -> SceneMix:
    """Return the mix of scenes that a recipe trains on."""
    from vega_diffusion.data.scene_stream import scene_mix
    from vega_diffusion.specs.data import ImageLatentsSpec
    from vega_diffusion.specs.recipe import TrainRecipe

    data = TrainRecipe.read(path).data
    if isinstance(data, ImageLatentsSpec):
        raise InvalidValue("mix", str(path), "a recipe that trains on scenes", "name another")
    return scene_mix(data.mix)


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


def curate(
    folder: Annotated[str | None, text("FOLDER")] = None,
    shards: Annotated[str | None, text("FOLDER")] = None,
    dataset: Annotated[str | None, text("NAME")] = None,
    split: Annotated[str | None, text("NAME", "train")] = None,
    image_column: Annotated[str | None, text("NAME", "image")] = None,
    caption_column: str = "text",
    min_size: Annotated[int | None, tyro.conf.arg(metavar="PX")] = None,
    max_aspect: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    duplicates: bool = False,
    near_duplicate_bits: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    max_watermark: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    watermark_column: Annotated[str | None, text("NAME", "pwatermark")] = None,
    max_unsafe: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    unsafe_column: Annotated[str | None, text("NAME", "punsafe")] = None,
    min_caption_words: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    max_caption_words: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    languages: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CODE")] = (),
    report: Annotated[str | None, text("FILE")] = None,
    json: bool = False,
) -> int:
    """Say what filters would leave of captioned pictures, and what each would remove; changes nothing.

    The same filters stand in a recipe under data.filters.

    Args:
        folder: Pictures as files.
        shards: Pictures in .tar files.
        dataset: Name on the Hub, or a folder that the library datasets reads.
        split: Part of the data set.
        image_column: Column of the data set that holds the pictures.
        caption_column: Column that holds the captions.
        min_size: Shortest side that stays.
        max_aspect: Longest side over shortest that stays.
        duplicates: Of equal files, keep the first.
        near_duplicate_bits: Of pictures whose looks differ by at most so many of 64 bits (0 to 3), keep the first.
        max_watermark: Highest watermark score that stays.
        watermark_column: Column that holds it.
        max_unsafe: Highest unsafe score that stays.
        unsafe_column: Column that holds it.
        min_caption_words: Fewest words of a caption.
        max_caption_words: Most words of a caption.
        languages: Languages of captions that stay, as in en de.
        report: Write all names as JSON to this file.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.specs.data import ImageLatentsSpec
    from vega_diffusion.training.picture_sources import open_pictures

    filters = {
        "min_size_px": min_size,
        "max_aspect": max_aspect,
        "duplicates": duplicates,
        "near_duplicate_bits": near_duplicate_bits,
        "max_watermark": max_watermark,
        "watermark_column": watermark_column,
        "max_unsafe": max_unsafe,
        "unsafe_column": unsafe_column,
        "min_caption_words": min_caption_words,
        "max_caption_words": max_caption_words,
        "languages": list(languages),
    }
    place = {"folder": folder, "shards": shards, "dataset": dataset, "split": split, "image_column": image_column}
    given = {key: value for key, value in place.items() if value is not None}
    chosen = {key: value for key, value in filters.items() if value is not None and value is not False}
    spec = ImageLatentsSpec.from_dict(
        {"kind": "image_latents", "caption_column": caption_column, "filters": chosen, **given}
    )
    _, found = open_pictures(spec)
    if report is not None:
        _write_json(Path(report).expanduser(), found.to_dict())
    counts = {reason: len(names) for reason, names in found.left_out.items()}
    print(jsonlib.dumps(found.to_dict() | {"left_out": counts}) if json else found)
    return 0


def download(
    table: Annotated[str, tyro.conf.Positional, text("TABLE")],
    /,
    output: Annotated[str, tyro.conf.arg(metavar="FOLDER")],
    size: Annotated[int, tyro.conf.arg(metavar="PX")] = 1024,
    licence: str = "not stated",
    url_column: Annotated[str | None, text("NAME", "known names, such as url and Attachments")] = None,
    caption_column: Annotated[str | None, text("NAME", "known names, such as caption and clean_prompts")] = None,
    shard_size: int = 10_000,
    processes: int = 1,
    threads: int = 64,
    json: bool = False,
) -> int:
    """Fetch the pictures of a table of addresses into .tar shards; a call that was interrupted goes on.

    Works with img2dataset, which make tools installs. What cannot be fetched is counted by reason in
    record/download.json.

    Args:
        table: Parquet, csv, tsv or jsonl file with addresses and captions, or a folder of them.
        output: Folder of the shards.
        size: Pictures with a larger shorter side are scaled down to this.
        licence: Terms of the table, for the record.
        url_column: Column that holds the addresses.
        caption_column: Column that holds the captions.
        shard_size: Addresses a shard.
        processes: Processes of img2dataset.
        threads: Threads of each.
        json: Print one JSON object as the last line.
    """
    from tqdm import tqdm

    from vega_diffusion.data import url_tables

    for name, value in (("size", size), ("shard_size", shard_size), ("processes", processes), ("threads", threads)):
        if value < 1:
            raise InvalidValue(name, value, "1 or more", "raise it")
    found = url_tables.read_table(Path(table).expanduser(), url_column, caption_column)
    folder = Path(output).expanduser()
    with tqdm(total=found.rows, unit="address", file=sys.stderr, disable=None) as bar:
        record = url_tables.download(
            found,
            folder,
            size_px=size,
            licence=licence,
            shard_size=shard_size,
            processes=processes,
            threads=threads,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    print(jsonlib.dumps(record.to_dict() | {"folder": str(folder)}) if json else f"{folder}: {record}")
    return 0


def _write_json(path: Path, data: object) -> None:
    try:
        path.write_text(jsonlib.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VegaError(f"{path}: cannot be written ({error.strerror}); name another file with --report") from error


def _say(line: str) -> None:
    print(line, file=sys.stderr)
