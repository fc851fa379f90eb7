"""A user's own folder as the place of a run and of its result: nothing of the user's is overwritten or removed.

What a run leaves at the top of the folder is listed with hashes in `result.json`. A file that is not in that list, or
is another than was written, belongs to the user.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.state import MANIFEST, verify

RESULT = "result.json"
RUN_NAMES = ("states", "ema", "samples", "metrics.jsonl", "recipe.json", "data.json")

Say = Callable[[str], object]


def check_free(directory: RunDirectory, resume: str | None, names: Sequence[str]) -> None:
    """Refuse a folder in which something stands in the way of a run; nothing is written.

    Args:
        directory: The run, at the user's folder.
        resume: `latest`, the folder of a saved state or of a run, or None for a run that must not be there yet.
        names: What the result will be called at the top of the folder.

    Raises:
        VegaError: Something stands in the way, or there is no such state.
    """
    stands, own = standing_states(directory), (directory.path / RESULT).is_file()
    if stands and resume is None:
        raise VegaError(
            f"--output_dir: a run stands in {directory.path}, after step {_step(stands[-1]):,}; allowed: "
            "--resume_from_checkpoint latest, which goes on there, or another folder; choose one"
        )
    _recorded(directory.path)
    taken = [name for name in names if foreign(directory.path, name)]
    if not own:
        taken += [name for name in RUN_NAMES if _holds_something(directory.path / name)]
    if taken:
        raise VegaError(
            f"--output_dir: {directory.path / taken[0]} is there, and is not of this run; nothing is overwritten; "
            "choose another folder"
        )
    if resume not in (None, "latest"):
        find_state(resume, directory)


def claim(directory: RunDirectory, resume: str | None, say: Say) -> None:
    """Make a free folder ready for a run; arguments as for `check_free`, `say` takes a line for the user.

    Raises:
        VegaError: The folder cannot be written, or the state to go on from is damaged or of another run.
    """
    directory.create()
    record(directory.path, {})
    if resume == "latest":
        if not standing_states(directory):
            say(f"--resume_from_checkpoint: no saved state in {directory.path}; the run starts from the beginning")
    elif resume is not None:
        adopt_state(directory, find_state(resume, directory))


def standing_states(directory: RunDirectory) -> list[Path]:
    """Return the saved states of a run, the oldest first."""
    return _states(directory.states)


def find_state(given: str, directory: RunDirectory) -> Path:
    """Return the saved state that a user means: its folder, that of a run (its newest), or a name in this run.

    Raises:
        MissingFile: There is none.
    """
    for path in (Path(given).expanduser().absolute(), directory.path / given, directory.states / given):
        if (path / MANIFEST).is_file() and (path / "state.json").is_file():
            return path
        for home in (path, path / "states"):
            if inside := _states(home):
                return inside[-1]
    diffusers = (Path(given).expanduser() / "optimizer.bin").is_file()
    why = "is a state of diffusers, which cannot be resumed exactly" if diffusers else "holds no saved state"
    raise MissingFile(
        f"--resume_from_checkpoint: {given!r} {why}; allowed: latest, or a folder such as "
        f"{directory.states / 'step-00000500'}; check the path"
    )


def adopt_state(directory: RunDirectory, state: Path) -> None:
    """Let a run go on from a state that may lie anywhere, by a copy of it; the state itself stays as it is.

    Raises:
        VegaError: The state is damaged, or the run has gone further already.
    """
    stands = standing_states(directory)
    if any(_same_state(one, state) for one in stands):
        if _step(stands[-1]) > _step(state):
            raise VegaError(
                f"--resume_from_checkpoint: {directory.path} holds states after step {_step(state):,}, which nothing "
                "removes; allowed: latest, or this state with another --output_dir; choose one"
            )
        return
    if stands:
        raise VegaError(
            f"--output_dir: another run stands in {directory.path}; allowed: a folder without one; choose another"
        )
    verify(state)
    place = directory.states / f".tmp-{state.name}-{os.getpid()}"
    try:
        shutil.copytree(state, place)
        verify(place)
        os.rename(place, directory.states / f"step-{_step(state):08d}")
    except OSError as error:
        raise VegaError(f"{directory.states}: cannot be written ({error}); free disk space and run again") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; what is in it at the end goes to the top of `folder`, each file in one go.

    Raises:
        VegaError: The disk is full, or a file of the user's stands in the way; it is as it was.
    """
    place = folder / f".result-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
        files = sorted(path for path in place.rglob("*") if path.is_file())
        names = {path.relative_to(place).as_posix(): path for path in files}
        for name in names:
            if foreign(folder, name):
                raise VegaError(
                    f"{folder / name}: was changed meanwhile, and nothing of yours is overwritten; move it away, "
                    "then run the same command with --resume_from_checkpoint latest"
                )
        record(folder, {name: _sha256(path) for name, path in names.items()})
        for name, path in names.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, folder / name)
    except OSError as error:
        raise VegaError(f"{folder}: the result cannot be written ({error}); free disk space and run again") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def foreign(folder: Path, name: str) -> bool:
    """Whether a file, or a file in a folder of that name, is not one that was written here."""
    path = folder / name
    if not path.exists():
        return False
    known = _recorded(folder)
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return any(_sha256(one) not in known.get(one.relative_to(folder).as_posix(), ()) for one in files)


def record(folder: Path, hashes: dict[str, str]) -> None:
    """Note files that are about to be written; older notes stay, since a killed process may not have come to all."""
    known = _recorded(folder)
    for name, sha256 in hashes.items():
        known[name] = [*(one for one in known.get(name, []) if one != sha256), sha256]
    temporary = folder / f".{RESULT}-{os.getpid()}"
    try:
        temporary.write_text(json.dumps({"files": known}, indent=1), encoding="utf-8")
        os.replace(temporary, folder / RESULT)
    except OSError as error:
        raise VegaError(f"{folder}: cannot be written ({error}); free disk space, or choose another folder") from error


def _recorded(folder: Path) -> dict[str, list[str]]:
    path = folder / RESULT
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise VegaError(
            f"--output_dir: {path} is there, and is not of this run; nothing is overwritten; choose another folder"
        ) from error


def _states(home: Path) -> list[Path]:
    return sorted(path for path in home.glob("step-*") if (path / MANIFEST).is_file())


def _same_state(first: Path, second: Path) -> bool:
    return (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()


def _step(state: Path) -> int:
    if re.fullmatch(r"step-\d+", state.name):
        return int(state.name[5:])
    try:  # a copy under a name of its own
        return int(json.loads((state / "state.json").read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError) as error:
        raise VegaError(f"{state}: damaged ({error})") from error


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
