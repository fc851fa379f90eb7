"""Draws and judges the prompts of a suite: in this process or several, each prompt by itself, resumable at any moment.

The unit of work is one prompt: its pictures share a U-Net call, and nothing else does. So a picture depends on the
model, the prompt and its seeds, never on how many processes work, in which order, or after how many interruptions.
On an accelerator, which four small pictures leave idle, several prompts are one unit (`workers.py` says how many).
Who draws (`workers.py`) and where results lie (`run_folder.py`) is not decided here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import connection, get_context, parent_process

from vega_diffusion.errors import VegaError
from vega_diffusion.evaluation.run_folder import JudgedPicture, RunFolder
from vega_diffusion.specs.evaluation import SuitePrompt

Worker = Callable[[Sequence[SuitePrompt]], list[JudgedPicture]]
"""Draws and judges some prompts, and writes their pictures."""

MakeWorker = Callable[[], Worker]
"""Loads what a worker needs; for several processes it must survive pickling."""

MAX_PROCESSES = 16
_WORTH_A_PROCESS = 4  # prompts; fewer are drawn sooner than another process has loaded the model


def run_prompts(
    folder: RunFolder,
    prompts: Sequence[SuitePrompt],
    make_worker: MakeWorker,
    *,
    processes: int = 1,
    label: str = "",
    at_once: int = 1,
) -> list[JudgedPicture]:
    """Draw and judge whatever of the prompts is still missing in a folder.

    Args:
        folder: Where pictures and lines go; what is whole in it is kept.
        prompts: All prompts of the evaluation.
        make_worker: Called once a process, and not at all where nothing is missing.
        processes: How many processes work; the result does not depend on it.
        label: What the progress bar on stderr says.
        at_once: How many prompts a worker is given at once.

    Returns:
        All judged pictures in the order of the prompts.
    """
    from tqdm import tqdm

    done = folder.finished(prompts)
    missing = [prompt for prompt in prompts if prompt.id not in done]
    units = [missing[start : start + at_once] for start in range(0, len(missing), at_once)]
    total = sum(len(prompt.seeds) for prompt in prompts)
    there = sum(len(judged) for judged in done.values())
    with tqdm(total=total, initial=there, unit="picture", desc=label or None, file=sys.stderr, disable=None) as bar:
        began = time.monotonic()
        with closing(_results(units, make_worker, min(processes, max(1, len(missing) // _WORTH_A_PROCESS)))) as results:
            for judged in results:
                folder.add(judged)
                folder.add_seconds(time.monotonic() - began)
                began = time.monotonic()
                bar.update(len(judged))
    return RunFolder.in_order(prompts, folder.finished(prompts) if missing else done)


def processes_here() -> int:
    """Return how many processes suit this machine's processor: one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_PROCESSES)


def _results(
    units: Sequence[Sequence[SuitePrompt]], make_worker: MakeWorker, processes: int
) -> Generator[list[JudgedPicture]]:
    if not units:
        return
    if processes == 1:
        worker = make_worker()
        for unit in units:
            yield worker(unit)
        return
    # Not forked: a fork of a process in which torch has threads may hang.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(make_worker,))
    try:
        for future in as_completed([pool.submit(_work, unit) for unit in units]):
            yield _received(future.result())
    except BrokenProcessPool as error:
        raise VegaError(
            f"processes: one of {processes} ended (out of memory?); what is finished is kept: run the same command "
            "again, perhaps with --processes 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _received(answer: list[JudgedPicture] | str) -> list[JudgedPicture]:
    """Return a worker's pictures, or raise what it reports: our errors do not survive pickling, their text does."""
    if isinstance(answer, str):
        raise VegaError(answer)
    return answer


# What follows runs in worker processes.

_worker: dict[str, Worker | str] = {}


def _begin(make_worker: MakeWorker) -> None:
    # Ctrl-C reaches all processes; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    import torch

    torch.set_num_threads(1)
    try:
        _worker["worker"] = make_worker()
    except VegaError as error:
        _worker["worker"] = str(error)


def _work(unit: Sequence[SuitePrompt]) -> list[JudgedPicture] | str:
    worker = _worker["worker"]
    if isinstance(worker, str):
        return worker
    try:
        return worker(unit)
    except VegaError as error:
        return str(error)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, even killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
