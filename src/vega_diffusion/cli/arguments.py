"""Reading a verb's arguments: tyro parses, and what it cannot parse becomes one line.

What the values mean is checked by the specs that a verb builds from them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from vega_diffusion.errors import VegaError

_Result = TypeVar("_Result")
_BOX = "╭╮╰╯│─"


class BadArguments(VegaError):
    """The command line cannot be read: unknown flag, missing value."""


def text(metavar: str, default: str = "") -> Any:
    """Return the tyro annotation of an argument taken as it is written; the spec judges it.

    Args:
        metavar: What stands for the value in the help, as "INT".
        default: What the help says happens without it.
    """
    hint = f"(default: {default})" if default else " "
    return tyro.conf.arg(constructor=str, metavar=metavar, help_behavior_hint=hint)


def run_verb(verb: str, function: Callable[..., _Result], argv: Sequence[str]) -> _Result:
    """Call a verb's function with its parsed arguments.

    Raises:
        BadArguments: The arguments cannot be parsed.
        SystemExit: Help was asked for and printed.
    """
    call = _parsed(verb, function, argv)
    return call()


def _parsed(verb: str, function: Callable[..., _Result], argv: Sequence[str]) -> Callable[[], _Result]:
    """Parse first and call later, so that only tyro's own words are caught."""
    received: dict[str, Any] = {}

    def keep(*args: Any, **kwargs: Any) -> None:
        received["args"], received["kwargs"] = args, kwargs

    keep.__dict__["__wrapped__"] = function
    keep.__doc__ = function.__doc__
    parse(verb, keep, argv)
    return lambda: function(*received["args"], **received["kwargs"])


def parse(verb: str, target: Callable[..., _Result], argv: Sequence[str]) -> _Result:
    """Return what tyro makes of the arguments for a function or a dataclass.

    Raises:
        BadArguments: They cannot be parsed; one line.
        SystemExit: Help was asked for and printed.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(target, args=list(argv), prog=f"vega {verb}", config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadArguments(_one_line(complaint.getvalue(), verb)) from stop


def _one_line(complaint: str, verb: str) -> str:
    """Return what tyro's box says, up to its rule, in one line."""
    words: list[str] = []
    lines = complaint.splitlines()
    if not complaint.startswith("╭"):  # a terminal without box-drawing letters: title, rule, what is wrong, rule
        rules = [number for number, line in enumerate(lines) if line.strip() and not line.strip(" -")]
        lines = lines[rules[0] + 1 :] if rules else lines
    for line in lines:
        if line.startswith(("╭", "╰")):
            continue
        content = line.strip(_BOX + " ")
        if not content.strip("-"):
            break
        words.append(content)
    reason = " ".join(words) or "cannot be read"
    return f"arguments: {reason.rstrip('.')}; see vega {verb} --help"
