"""A bar for work that takes minutes, on stderr where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def shown(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    """Yield items under a bar that says what is done with them."""
    from tqdm import tqdm

    yield from tqdm(items, desc=what, file=sys.stderr, leave=False, disable=None)
