"""What a run's own pictures look like to training, before anything is trained: for `vega train --dry-run`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vega_diffusion.data.curation import CurationReport
from vega_diffusion.data.image_latents import sort_into_buckets
from vega_diffusion.data.near_duplicates import MOST_BITS, first_alike
from vega_diffusion.data.picture_index import PictureIndex
from vega_diffusion.specs.data import ImageLatentsSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import model_spec
from vega_diffusion.training.encoders import load_tokenizers
from vega_diffusion.training.picture_sources import open_pictures


@dataclass(frozen=True)
class DataReport:
    """A collection as a run would see it.

    Args:
        curation: What was found, kept and left out.
        buckets: "WIDTHxHEIGHT" -> names of the pictures that go there.
        same_files: Names of pictures whose file is that of an earlier one.
        alike: Names of pictures that look like an earlier one.
        too_small: Names of pictures that are scaled up to fill their bucket.
        cut_captions: Name -> what is beyond the text encoders' length and not read.
        held_out: How many pictures training does not see.
    """

    curation: CurationReport
    buckets: dict[str, tuple[str, ...]]
    same_files: tuple[str, ...]
    alike: tuple[str, ...]
    too_small: tuple[str, ...]
    cut_captions: dict[str, str]
    held_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self) | {"curation": self.curation.to_dict()}

    def __str__(self) -> str:
        lines = [str(self.curation)]
        lines += [f"  {size:>9} {len(names):>8,} pictures (first {names[0]})" for size, names in self.buckets.items()]
        for names, what in (
            (self.same_files, "the same file as another"),
            (self.alike, "look like another"),
            (self.too_small, "smaller than their bucket, scaled up"),
        ):
            if names:
                lines.append(f"  note {len(names):>13,}  {what} (first {names[0]})")
        for name, lost in list(self.cut_captions.items())[:3]:
            lines.append(f"  caption of {name} is too long; not read: {lost!r}")
        if len(self.cut_captions) > 3:
            lines.append(f"  and {len(self.cut_captions) - 3:,} more captions that are too long")
        if self.held_out:
            lines.append(f"  held out {self.held_out:>9,}  pictures, for held_out_loss")
        return "\n".join(lines)


def report_data(recipe: TrainRecipe) -> DataReport | None:
    """Return what a recipe's pictures are like, or None where it draws scenes; nothing is encoded or written.

    Raises:
        VegaError: The collection cannot be read, or nothing is left of it.
    """
    data = recipe.data
    if not isinstance(data, ImageLatentsSpec):
        return None
    index, curation = open_pictures(data)
    tokenizers = load_tokenizers(recipe, model_spec(recipe))
    pictures, seen = index.pictures, set[str]()
    same = [one.name for one in pictures if one.sha256 in seen or seen.add(one.sha256)]
    first = first_alike([one.looks for one in pictures], MOST_BITS)
    alike = [one.name for place, one in enumerate(pictures) if first[place] != place and one.name not in same]
    members = sort_into_buckets(index, data)
    cut = {one.name: lost for one in pictures if (lost := tokenizers.lost(one.caption))}
    return DataReport(
        curation,
        {f"{w}x{h}": tuple(pictures[n].name for n in numbers) for (w, h), numbers in members.items()},
        tuple(same),
        tuple(alike),
        tuple(_too_small(index, data)),
        cut,
        min(recipe.samples.num_held_out, len(pictures) - 1),
    )


def _too_small(index: PictureIndex, data: ImageLatentsSpec) -> list[str]:
    return [
        index.pictures[number].name
        for (width, height), numbers in sort_into_buckets(index, data).items()
        for number in numbers
        if index.pictures[number].size[0] < width or index.pictures[number].size[1] < height
    ]
