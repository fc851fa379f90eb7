"""Which pictures are left out before training, as data. The filters themselves are in `data/curation.py`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.optimizer import Fraction, StrictSpec


class CurationSpec(StrictSpec):
    """Filters, applied in the order of the fields; None or False lets all through.

    Args:
        min_size_px: Shortest side.
        max_aspect: Longest side over shortest.
        duplicates: Of equal files, only the first stays.
        near_duplicate_bits: Of pictures whose looks differ by at most so many of 64 bits (0 to 3), the first stays.
        max_watermark: Highest watermark score that stays; a picture without a score is left out.
        watermark_column: Holds it, 0 to 1.
        max_unsafe: Highest unsafe score that stays; a picture without a score is left out.
        unsafe_column: Holds it, 0 to 1, or true and false.
        min_caption_words: Fewest words of a caption.
        max_caption_words: Most words of a caption.
        languages: ISO 639-1 codes that a caption may be in; it stays unless `py3langid` clearly finds another one.
        columns: Column -> values that stay: licences, `{upscaled = [true]}`.
    """

    min_size_px: PositiveInt | None = None
    max_aspect: Annotated[float, Field(ge=1.0)] | None = None
    duplicates: bool = False
    near_duplicate_bits: Annotated[int, Field(ge=0, le=3)] | None = None
    max_watermark: Fraction | None = None
    watermark_column: str = "pwatermark"
    max_unsafe: Fraction | None = None
    unsafe_column: str = "punsafe"
    min_caption_words: PositiveInt | None = None
    max_caption_words: PositiveInt | None = None
    languages: tuple[str, ...] = ()
    columns: dict[str, tuple[str | bool | int, ...]] = {}

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        for what in ("watermark", "unsafe"):
            column = f"{what}_column"
            if self.says(column) and getattr(self, f"max_{what}") is None:
                raise InvalidValue(
                    f"filters.{column}", getattr(self, column), f"nothing without max_{what}", f"set max_{what}"
                )
        least, most = self.min_caption_words, self.max_caption_words
        if least is not None and most is not None and least > most:
            raise InvalidValue("filters.max_caption_words", most, f"at least min_caption_words {least}", "raise it")
        return self

    @property
    def any(self) -> bool:
        """Whether a filter is set."""
        return self != CurationSpec()
