"""Numbers too small to be held at full precision, taken as zeros while a run computes.

Some of the gradients of a text's keys and values are below 1.2e-38, likely where attention all but ignores a place,
and a processor may need some twenty times as long for products that hold them (`docs/log.md`). Beside any other term
of a sum they are nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Generator[bool]:
    """Take denormal numbers as zeros in this thread, and in those that it starts meanwhile; yield whether that works.

    Threads of torch's pool are started by the first operation that they share, and keep what held then.
    """
    before = _flushes()
    try:
        yield torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(before)


def _flushes() -> bool:
    return not (torch.full((), 1e-40) * 1.0).item()
