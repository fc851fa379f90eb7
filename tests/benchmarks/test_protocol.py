"""The clock measures what happened: order of rounds, processor time, peak memory and failures of commands."""

from __future__ import annotations

import time

import pytest

from vega_diffusion.benchmarks.protocol import Timing, run_command, summarise, time_interleaved


def test_rounds_are_interleaved_after_the_warm_up() -> None:
    seen: list[tuple[str, int]] = []
    timings = time_interleaved(
        {"a": lambda i: seen.append(("a", i)), "b": lambda i: seen.append(("b", i))}, warm_up=2, repeats=5
    )
    assert seen[:4] == [("a", -1), ("b", -1)] * 2
    assert seen[4:] == [(name, i) for i in range(5) for name in "ab"]
    assert {name: len(values) for name, values in timings.items()} == {"a": 5, "b": 5}


def test_fewer_than_five_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="5 or more"):
        time_interleaved({"a": lambda i: None}, repeats=4)


def test_waiting_costs_wall_time_and_no_processor_time() -> None:
    slept = time_interleaved({"sleep": lambda i: time.sleep(0.05)}, warm_up=0)["sleep"]
    assert all(timing.wall_s >= 0.05 for timing in slept)
    assert sum(timing.cpu_s for timing in slept) < 0.5 * sum(timing.wall_s for timing in slept)


def test_summary_holds_minimum_and_medians() -> None:
    timings = [Timing(wall, wall / 2) for wall in (3.0, 1.0, 2.0, 9.0, 4.0)]
    assert summarise(timings) == {"min_s": 1.0, "median_s": 3.0, "median_cpu_s": 1.5, "count": 5}


def test_peak_memory_of_a_command_is_its_own() -> None:
    # `timeit` is a module that runs what it is given: here, 200 MB that stay alive.
    # The bench itself holds 300 MB meanwhile, none of which may be counted.
    held = bytearray(b"x" * 300_000_000)
    small = run_command(["timeit", "-n1", "-r1", "pass"])
    large = run_command(["timeit", "-n1", "-r1", "b = bytearray(200_000_000)"])
    assert len(held) == 300_000_000
    assert small.peak_bytes < 100e6
    assert 190e6 < large.peak_bytes - small.peak_bytes < 250e6
    assert "1 loop" in small.stdout


def test_a_failing_command_says_what_it_wrote() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_command(["timeit", "-n1", "-r1", "1/0"])


def test_what_times_itself_is_believed():
    own = Timing(wall_s=3.0, cpu_s=2.0)
    timings = time_interleaved({"own": lambda i: own, "whole": lambda i: (1.0, 2.0)})
    assert timings["own"] == [own] * 5
    assert all(one.wall_s < 1.0 for one in timings["whole"])
