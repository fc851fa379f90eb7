"""What a user can cause and fix: `VegaError` and its few children, each one line of text.

Bugs are not here: they stay ordinary exceptions and exit with code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class VegaError(Exception):
    """A mistake that the user can mend; the message is one line that says how."""

    exit_code = 2


class InvalidValue(VegaError):
    """A field whose value is not allowed.

    Args:
        field: Name of the field as the user wrote it (flag, TOML path, JSON key).
        value: The value given.
        allowed: What is allowed, as a phrase: "a multiple of 8", "one of: euler, ddim".
        remedy: What to do about it, as a phrase.
    """

    def __init__(self, field: str, value: Any, allowed: str, remedy: str) -> None:
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{field}: {shown} is not allowed; allowed: {allowed}; {remedy}")
        self.field, self.value, self.allowed, self.remedy = field, value, allowed, remedy


class MissingFile(VegaError):
    """A file or folder that should be there and is not, or cannot be read."""


class UnreadableModel(VegaError):
    """A model folder or checkpoint that is truncated, incomplete or not of a known shape."""


class Unavailable(VegaError):
    """Something optional (package, network, device) that this machine does not have."""


def run_script(work: Callable[[], object]) -> int:
    """Run a script's work and print what it returns; a user's mistake becomes one line on stderr.

    Returns:
        The script's exit code: 0, or the mistake's own.
    """
    try:
        print(work())
    except VegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
