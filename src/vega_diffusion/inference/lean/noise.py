"""torch's normal numbers without torch: Python's Mersenne twister, seeded as torch seeds, and Box-Muller blocks.

Equal to `torch.randn` on a CPU but for the last bits of logarithms and cosines (tests hold it to 1e-6), for any number
of draws of 16 numbers or more; rounded to bfloat16, for whole blocks of 16.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]
BLOCK = 16
"""torch turns 8 pairs at a time; in bfloat16 it draws what is left over in another way than in float32."""

_WORD, _STATE_WORDS = 0xFFFFFFFF, 624
_WORD_BITS = 24  # of each 32-bit word, as many as a float32 holds


class TorchNoise:
    """What `torch.Generator("cpu").manual_seed(seed)` gives to `torch.randn`, draw after draw.

    Args:
        seed: As torch takes it; of its bits the twister sees the lowest 32.
    """

    def __init__(self, seed: int) -> None:
        # Not numpy's twister, which comes with a package that takes a twentieth of a second to import.
        self._twister = Random()
        self._twister.setstate((3, (*_first_state(seed & _WORD), _STATE_WORDS), None))

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Return normal numbers, float32.

        Raises:
            ValueError: Fewer than 16 numbers, which torch draws another way.
        """
        count = math.prod(shape)
        if count < BLOCK:
            raise ValueError(f"{count} numbers; torch draws fewer than {BLOCK} in another way")
        uniform = self._uniform(count)
        whole = count - count % BLOCK
        drawn = numpy.empty(count, numpy.float32)
        drawn[:whole] = _box_muller(uniform[:whole])
        if whole < count:  # torch draws the last block anew, and over what it overlaps
            drawn[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return drawn.reshape(shape)

    def _uniform(self, count: int) -> Array:
        words = numpy.frombuffer(self._twister.getrandbits(32 * count).to_bytes(4 * count, "little"), "<u4")
        return (words & ((1 << _WORD_BITS) - 1)).astype(numpy.float32) * numpy.float32(2.0**-_WORD_BITS)


def _first_state(seed: int) -> list[int]:
    """Return a twister's first state (Matsumoto and Nishimura's `init_genrand`, 2002)."""
    state = [seed]
    for index in range(1, _STATE_WORDS):
        state.append((1_812_433_253 * (state[-1] ^ (state[-1] >> 30)) + index) & _WORD)
    return state


def _box_muller(uniform: Array) -> Array:
    """Return normal numbers from uniform ones: in each block of 16 the first 8 give radii, the last 8 angles."""
    blocks = uniform.reshape(-1, BLOCK)
    radius = numpy.sqrt(-2 * numpy.log(1 - blocks[:, : BLOCK // 2]))
    angle = numpy.float32(2 * math.pi) * blocks[:, BLOCK // 2 :]
    return numpy.concatenate([radius * numpy.cos(angle), radius * numpy.sin(angle)], axis=1).reshape(-1)


def rounded_to_bfloat16(array: Array) -> Array:
    """Return float32 numbers rounded to bfloat16's, ties to even; finite ones alone."""
    bits = numpy.ascontiguousarray(array, numpy.float32).view(numpy.uint32)
    odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + odd) & 0xFFFF0000).astype(numpy.uint32).view(numpy.float32)
