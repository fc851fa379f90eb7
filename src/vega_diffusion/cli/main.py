"""Entry point of `vega`: finds the verb, runs it, turns errors into one line and an exit code.

No heavy library is imported here: `vega --help` must not cost a torch import.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from vega_diffusion.errors import VegaError

# verb -> (module with `run(argv) -> exit code`, one line of help)
VERBS: dict[str, tuple[str, str]] = {
    "generate": ("vega_diffusion.cli.generate", "draw pictures from a prompt"),
    "inspect": ("vega_diffusion.cli.inspect", "parameters, work and layout of a model (read-only)"),
    "train": ("vega_diffusion.cli.train", "train by a recipe; resumes exactly"),
    "export": ("vega_diffusion.cli.export", "what a run trained, as a model folder with a card"),
    "convert": (
        "vega_diffusion.cli.convert",
        "LoRA files: other layouts, merged, extracted, resized; single-file checkpoints",
    ),
    "evaluate": ("vega_diffusion.cli.evaluate", "how well a model follows prompts, and comparisons"),
    "calibrate": (
        "vega_diffusion.cli.calibrate",
        "make a model's int8 U-Net and decoder, which profiles then draw with",
    ),
    "benchmark": ("vega_diffusion.cli.benchmark", "speed, memory, and what profiles cost in likeness"),
    "map": ("vega_diffusion.cli.map", "layer maps: which teacher block a student's block comes from"),
    "data": ("vega_diffusion.cli.data", "icons, captioned scenes and checks of them"),
}

RESERVED: dict[str, str] = {
    "serve": "the HTTP server and page",
}


def help_text() -> str:
    """Return what `vega --help` prints."""
    lines = ["usage: vega VERB [options]    (vega VERB --help lists a verb's options)", ""]
    lines += [f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done, 1 a bug, 2 something the user can mend, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from vega_diffusion import __version__

        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        known = ", ".join(VERBS)
        later = " (reserved, not built yet)" if verb in RESERVED else ""
        print(f"error: verb: {verb!r} is not allowed{later}; allowed: {known}; see vega --help", file=sys.stderr)
        return 2
    try:
        return import_module(VERBS[verb][0]).run(rest)
    except VegaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away: that is its right, not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def command() -> NoReturn:
    """Run the program `vega`, and leave without taking its networks apart: that took half a second of a picture.

    What others registered for the exit is run first. Python ends as it always does where a bug ends the program, and
    where streams cannot be flushed.
    """
    code: int | None = None

    def leave() -> None:
        if code is None:
            return
        try:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        except (OSError, ValueError):
            return
        os._exit(code)

    atexit.register(leave)  # what is registered first runs last
    code = main()
    sys.exit(code)


if __name__ == "__main__":
    command()
