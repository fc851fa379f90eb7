"""`vega benchmark CASE`: speed, memory, likeness of profiles; a result file a case, a JSON object as the last line."""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Run one case; `vega benchmark --help` lists them.

    Returns:
        0 measured, whether or not the goals are met.
    """
    from vega_diffusion.benchmarks.__main__ import main

    return main(argv, "vega benchmark")
