"""Tables of picture addresses (GRIT, Midjourney scrapes, one's own) become shards: img2dataset does it, as a program.

img2dataset needs other versions of libraries than we do, so it lives in an environment of its own (`make tools`). What
lives here: which columns a table has, the command, its progress, and the record of dead links and of the licence.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable, VegaError

URL_COLUMNS = ("url", "URL", "Attachments", "image_url", "link")
"""Names under which tables hold addresses; `Attachments` in wanng/midjourney-v5-202304-clean, `url` in zzliang/GRIT."""

CAPTION_COLUMNS = ("caption", "clean_prompts", "text", "TEXT", "prompt")

FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}

NOTES = "record"
"""Folder of our own files beside the shards: img2dataset takes every .json beside them for its own."""

# What img2dataset itself writes beside every picture.
RESERVED = frozenset(
    {"key", "status", "error_message", "width", "height", "original_width", "original_height", "exif", "sha256"}
)


@dataclass(frozen=True)
class UrlTable:
    """A table and how it is read.

    Args:
        path: The file, or a folder of files of one format.
        format: As img2dataset calls it.
        rows: How many there are.
        url_column: Holds the addresses.
        caption_column: Holds the captions.
        columns: Further plain columns, kept beside every picture.
    """

    path: Path
    format: str
    rows: int
    url_column: str
    caption_column: str
    columns: tuple[str, ...]


def read_table(path: Path, url_column: str | None = None, caption_column: str | None = None) -> UrlTable:
    """Look into a table; columns that are not given are known by their names.

    Raises:
        MissingFile: There is no such file, or a folder without tables.
        InvalidValue: A column is not there, or its name is not known.
        Unavailable: The table is parquet and pyarrow is not installed.
        VegaError: The table cannot be read.
    """
    files = _files(path)
    kinds = {FORMATS[file.suffix] for file in files}
    if len(kinds) != 1:
        raise InvalidValue("table", str(path), "files of one format", "move the others away")
    (kind,) = kinds
    try:
        looked = [_columns(file, kind) for file in files]
    except (OSError, ValueError, csv.Error) as error:
        raise VegaError(f"{path}: cannot be read as {kind} ({error})") from error
    plain = looked[0][0]
    url = _chosen("--url-column", url_column, URL_COLUMNS, plain)
    caption = _chosen("--caption-column", caption_column, CAPTION_COLUMNS, plain)
    others = tuple(name for name in plain if name not in RESERVED | {url, caption, "url", "caption"})
    return UrlTable(path, kind, sum(rows for _, rows in looked), url, caption, others)


@dataclass(frozen=True)
class DownloadRecord:
    """What became of a table's addresses.

    Args:
        table: Its name; `table_sha256` is the hash of its content.
        licence: Under which the table says it may be used, as the user stated it.
        rows: Addresses.
        downloaded: Pictures that are in the shards.
        lost: Reason -> addresses without a picture.
        shards: Number of `.tar` files.
        seconds: Of all shards' work together.
    """

    table: str
    table_sha256: str
    licence: str
    rows: int
    downloaded: int
    lost: dict[str, int]
    shards: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.downloaded:,} of {self.rows:,} pictures in {self.shards} shards; licence: {self.licence}"]
        return "\n".join(lines + [f"  lost {number:>8,}  {why}" for why, number in self.lost.items()])


def download(
    table: UrlTable,
    output: Path,
    *,
    size_px: int = 1024,
    licence: str = "not stated",
    shard_size: int = 10_000,
    processes: int = 1,
    threads: int = 64,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> DownloadRecord:
    """Fetch a table's pictures into shards; a call that was interrupted goes on where it stopped.

    Pictures whose shorter side is larger than `size_px` are scaled down to it. Addresses that forbid such use by an
    X-Robots-Tag are left out, as img2dataset does by itself.

    Args:
        table: Of `read_table`.
        output: Folder of the shards; `record/download.json` in it is the record.
        size_px: Shorter side.
        licence: Goes into the record.
        shard_size: Addresses a shard.
        processes: Of img2dataset.
        threads: Of every process.
        progress: Receives (addresses done, addresses).

    Raises:
        Unavailable: img2dataset is not installed.
        VegaError: It failed; the folder holds shards of another table.
    """
    program, notes = find_program(), output / NOTES
    marker, identity = notes / "table.json", {"sha256": _digest(table.path), "shard_size": shard_size, "size": size_px}
    try:
        notes.mkdir(parents=True, exist_ok=True)
        if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != identity:
            raise InvalidValue("--output", str(output), "a new folder, or that of the same call", "name another")
        marker.write_text(json.dumps(identity), encoding="utf-8")
    except (OSError, json.JSONDecodeError) as error:
        raise VegaError(f"{output}: cannot be used ({error}); name another folder with --output") from error
    settings = {
        "url_list": table.path,
        "input_format": table.format,
        "url_col": table.url_column,
        "caption_col": table.caption_column,
        "save_additional_columns": json.dumps(list(table.columns)),
        "output_folder": output,
        "output_format": "webdataset",
        "image_size": size_px,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "skip_reencode": True,
        "number_sample_per_shard": shard_size,
        "processes_count": processes,
        "thread_count": threads,
        "retries": 1,
    }
    _run([str(program), *(f"--{name}={value}" for name, value in settings.items())], output, table.rows, progress)
    record = _record(table, output, licence, identity["sha256"])
    try:
        (notes / "download.json").write_text(json.dumps(record.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VegaError(f"{notes}: cannot be written ({error.strerror}); free disk space and run again") from error
    return record


def find_program() -> Path:
    """Return img2dataset: in `$VEGA_TOOLS`, in `.venv-tools` (where `make tools` puts it), or on the PATH.

    Raises:
        Unavailable: It is in none of them.
    """
    folders = [Path(os.environ["VEGA_TOOLS"])] if "VEGA_TOOLS" in os.environ else [Path(".venv-tools")]
    for folder in folders:
        if (folder / "bin/img2dataset").is_file():
            return (folder / "bin/img2dataset").absolute()
    found = shutil.which("img2dataset")
    if found is None:
        raise Unavailable(
            "img2dataset: not installed; run make tools, or install it in an environment of its own and name that in "
            "VEGA_TOOLS"
        )
    return Path(found)


def _run(command: Sequence[str], output: Path, rows: int, progress: Callable[[int, int], object]) -> None:
    """Run the program, say what its statistics files say, and show its last words where it fails."""
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    with open(output / NOTES / "img2dataset.log", "wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while child.poll() is None:
                time.sleep(0.2)
                progress(sum(entry["count"] for entry in _statistics(output)), rows)
        except BaseException:
            child.terminate()
            child.wait()
            raise
    progress(sum(entry["count"] for entry in _statistics(output)), rows)
    if child.returncode:
        words = Path(log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise VegaError(
            f"img2dataset: ended with {child.returncode} ({words[-1] if words else 'no word'}); see {log.name}"
        )


def _record(table: UrlTable, output: Path, licence: str, digest: str) -> DownloadRecord:
    entries = _statistics(output)
    lost: Counter[str] = Counter()
    for entry in entries:
        lost.update({why: number for why, number in entry["status_dict"].items() if why != "success"})
    done = sum(entry["count"] for entry in entries)
    if done < table.rows:  # a shard that img2dataset gave up
        lost["not tried"] = table.rows - done
    return DownloadRecord(
        table.path.name,
        digest,
        licence,
        table.rows,
        sum(entry["successes"] for entry in entries),
        dict(lost.most_common()),
        len(list(output.glob("*.tar"))),
        round(sum(entry["duration"] for entry in entries), 1),
    )


def _statistics(output: Path) -> list[dict[str, Any]]:
    """Return what the finished shards say of themselves."""
    found = []
    for path in sorted(output.glob("*_stats.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:  # being written
            continue
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FORMATS)
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise MissingFile(f"{path}: no table; give a file or folder of {', '.join(FORMATS)}")
    if files[0].suffix not in FORMATS:
        raise InvalidValue("table", str(path), f"a file that ends in {', '.join(FORMATS)}", "convert it")
    return files


def _columns(file: Path, kind: str) -> tuple[list[str], int]:
    """Return the plain columns of one file (text, numbers, true and false) and its number of rows."""
    if kind == "parquet":
        try:
            from pyarrow import parquet, types
        except ImportError as error:
            raise Unavailable("pyarrow: not installed; pip install 'vega-diffusion[data]'") from error
        opened = parquet.ParquetFile(file)
        schema = opened.schema_arrow
        return [one.name for one in schema if not types.is_nested(one.type)], opened.metadata.num_rows
    with open(file, encoding="utf-8", newline="") as lines:
        if kind == "jsonl":
            rows = [line for line in lines if line.strip()]
            first = json.loads(rows[0]) if rows else {}
            return [name for name, value in first.items() if not isinstance(value, list | dict)], len(rows)
        table = csv.reader(lines, delimiter="\t" if kind == "tsv" else ",")
        return next(table, []), sum(1 for _ in table)


def _chosen(field: str, given: str | None, known: Sequence[str], there: Sequence[str]) -> str:
    if given is not None:
        if given not in there:
            raise InvalidValue(field, given, f"a column of the table: {', '.join(there)}", "name one")
        return given
    for name in known:
        if name in there:
            return name
    raise InvalidValue(field, None, f"a column of the table: {', '.join(there)}", "name the one that holds it")


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    for file in _files(path):
        with open(file, "rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()
