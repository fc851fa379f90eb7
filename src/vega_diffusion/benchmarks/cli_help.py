"""Case `cli-help`: how long `vega --help` takes, from the start of the interpreter to its end."""

from __future__ import annotations

from vega_diffusion.benchmarks.protocol import run_command, summarise
from vega_diffusion.benchmarks.report import Bar, Measurement


def measure(repeats: int = 15) -> Measurement:
    """Time `vega --help` in fresh interpreters.

    Args:
        repeats: Timed runs after one that warms the disk cache.
    """
    run_command(["vega_diffusion.cli.main", "--help"])
    timings = [run_command(["vega_diffusion.cli.main", "--help"]).timing for _ in range(repeats)]
    summary = summarise(timings)
    return Measurement(
        samples={"wall_s": [t.wall_s for t in timings], "cpu_s": [t.cpu_s for t in timings]},
        summary={f"help_{name}": value for name, value in summary.items()},
        bars=(Bar(what="`vega --help`", measured=summary["median_s"], unit="s", limit=0.6, better="lower"),),
        protocol=f"one warm-up, then {repeats} fresh interpreters one after another; the goal is held by the median",
    )
