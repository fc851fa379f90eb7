"""Pictures that look alike: a hash of 88 bits that survives scaling and compression, and groups of near hashes.

64 bits say for 8 x 8 places of the picture at 9 x 8 grey pixels whether it gets brighter to the right (difference
hash, N. Krawetz 2013), by more than compression does to an even surface; the last 24 are its mean colour, without which
a red ball and a blue one would be the same. Two hashes that differ in fewer than four of the 64 bits share one of their
four pieces, so groups are found without comparing all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

MOST_BITS = 3
"""Up to this many differing bits, no pair is missed."""

_PIECES = MOST_BITS + 1
_PIECE_BITS = 64 // _PIECES


_BRIGHTER = 4
_COLOUR_BITS = 24
_COLOUR_STEPS = 12


def look_hash(picture: Image.Image) -> int:
    """Return the 88 bits of an RGB picture."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    colour = np.asarray(picture.resize((1, 1), Image.Resampling.BOX), dtype=np.uint8)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1] + _BRIGHTER).tobytes() + colour.tobytes(), "big")


def first_alike(hashes: Sequence[int], bits: int) -> list[int]:
    """Return for every hash the first one before it that it is like, or its own place.

    A picture that is left out as the double of another does not stand for further ones: what counts is nearness to
    one that is kept.

    Args:
        hashes: Of `look_hash`.
        bits: How many of the 64 bits may differ, 0 to `MOST_BITS`; mean colours by 12 of 255 a channel.
    """
    if not 0 <= bits <= MOST_BITS:
        raise AssertionError(f"bits {bits}, wanted 0..{MOST_BITS}")
    kept: list[dict[int, list[int]]] = [{} for _ in range(_PIECES)]
    found = []
    for place, value in enumerate(hashes):
        shape = value >> _COLOUR_BITS
        pieces = [shape >> (_PIECE_BITS * piece) & (1 << _PIECE_BITS) - 1 for piece in range(_PIECES)]
        near = [
            other
            for piece, key in enumerate(pieces)
            for other in kept[piece].get(key, ())
            if (hashes[other] >> _COLOUR_BITS ^ shape).bit_count() <= bits and _same_colour(hashes[other], value)
        ]
        found.append(min(near, default=place))
        if not near:
            for piece, key in enumerate(pieces):
                kept[piece].setdefault(key, []).append(place)
    return found


def _same_colour(first: int, second: int) -> bool:
    return all(abs((first >> shift & 255) - (second >> shift & 255)) <= _COLOUR_STEPS for shift in (0, 8, 16))
