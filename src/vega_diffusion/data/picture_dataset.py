"""A data set of the Hub, or one on disk, as a collection: rows of a table with a column of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vega_diffusion.data.picture_index import Entry
from vega_diffusion.errors import InvalidValue, Unavailable, VegaError


class DatasetPictures:
    """The rows of one split.

    Args:
        name: Of a data set on the Hub, or a folder: files as `datasets` reads them, or what `save_to_disk` wrote.
        split: Which part.
        image_column: Holds the pictures.
        caption_column: Holds the captions.
        config: Which configuration, where there are several.

    Raises:
        Unavailable: The library `datasets` is not installed.
        InvalidValue: A column is not there or holds no pictures.
        VegaError: The data set cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "text",
        config: str | None = None,
    ):
        self.name, self.image_column, self.column = f"{name} ({split})", image_column, caption_column
        rows = _load(name, split, config)
        for field, column in (("data.image_column", image_column), ("data.caption_column", caption_column)):
            if column not in rows.column_names:
                raise InvalidValue(field, column, f"a column of {name}: {', '.join(rows.column_names)}", "name one")
        if type(rows.features[image_column]).__name__ != "Image":
            raise InvalidValue("data.image_column", image_column, "a column of pictures", "name another")
        import datasets

        self.rows = rows.cast_column(image_column, datasets.Image(decode=False))

    def entries(self) -> list[Entry]:
        """Return all rows; a data set of other content gives other stamps."""
        others = self.rows.remove_columns([self.image_column])
        found = []
        for number, row in enumerate(others):
            caption = row.pop(self.column)
            text = caption.strip() if isinstance(caption, str) else ""
            found.append(Entry(f"row {number}", text, f"{self.rows._fingerprint} {number}", row))
        return found

    def read(self, number: int) -> bytes:
        """Return the picture file of row `number`."""
        picture = self.rows[number][self.image_column]
        if picture is None:
            raise OSError("no picture")
        return picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()


def _load(name: str, split: str, config: str | None) -> Any:
    """Return one split as a table that is read by row."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise Unavailable("datasets: not installed; pip install 'vega-diffusion[data]'") from error
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            loaded = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            loaded = datasets.load_dataset(str(folder) if folder.exists() else name, config, split=split)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        said = str(error).strip().splitlines()
        raise VegaError(
            f"data.dataset: {name!r} ({split}) cannot be loaded ({said[0] if said else error!r})"
        ) from error
    return loaded
