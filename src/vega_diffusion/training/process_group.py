"""Keeps the group that a run's processes form until the program ends, where nothing can wait for it in a circle."""

from __future__ import annotations

import atexit

from torch import distributed

_kept: list[object] = []


def keep_group() -> None:
    """Hold this process's group, where there is one, until the interpreter exits.

    A run's wrapper for several processes would be the last to hold it otherwise. Its destructor waits for gloo's
    threads while it has the interpreter's lock, and a thread that has yet to let go of a tensor waits for that lock:
    now and then a run that was done never ended (torch 2.13, two processes on busy cores; docs/log.md). A handle of
    Python's gives the lock away before it waits.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.group.WORLD not in _kept:
        if not _kept:
            atexit.register(_kept.clear)
        _kept.append(distributed.group.WORLD)
