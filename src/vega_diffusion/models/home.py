"""Where things are kept that are made once and used again: `$VEGA_HOME`. What lies in it is its makers' matter."""

from __future__ import annotations

import os
from pathlib import Path


def vega_home() -> Path:
    """Return `$VEGA_HOME`, or `vega-diffusion` in the user's cache directory; it need not exist."""
    given = os.environ.get("VEGA_HOME")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vega-diffusion"
