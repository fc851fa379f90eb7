"""Exact, atomic run states on disk.

A state is a folder `step-00000500/` with the student's weights, the averages, the optimizer's moments (all
safetensors, no pickle), `state.json` with the rest, and `manifest.json` with the size and SHA-256 of each file. It is
written under another name, synced and renamed; only then older states go. Whether it is whole is verified when it is
read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from vega_diffusion.errors import VegaError
from vega_diffusion.training.sharding import split_like

MANIFEST = "manifest.json"

GROUP = "group "
GROUP_STATE = ("d", "d_max", "d_hat", "d_numerator", "d_denom", "k")
"""What Prodigy keeps for all parameters together, in its groups."""


@dataclass(frozen=True)
class RunState:
    """Everything that the next step depends on. Randomness is absent: it is a function of position.

    Args:
        step: Optimizer steps done.
        student: Name -> weight or buffer.
        ema: Name -> average; empty without an average.
        optimizer: `parameter name|key` -> tensor of the optimizer.
        extra: Plain data: recipe identity, loss scale, data fingerprint, seconds trained.
    """

    step: int
    student: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    extra: dict[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """Return what an optimizer knows: under `parameter name|key`, and for whole groups under `group INDEX|key`.

    Numbers of Python become tensors of 64 bits, which no weight has, so that they are numbers again on the way back.

    Args:
        optimizer: Any torch optimizer whose state values are tensors or numbers.
        names: `id(parameter)` -> name.
    """
    found = {
        f"{names[id(parameter)]}|{key}": _as_tensor(key, value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    for index, group in enumerate(optimizer.param_groups):
        found |= {f"{GROUP}{index}|{key}": _as_tensor(key, group[key]) for key in GROUP_STATE if key in group}
    return found


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Put tensors of `optimizer_tensors` back; `parameters` maps name -> parameter."""
    optimizer.state.clear()
    for name, value in tensors.items():
        owner, _, key = name.rpartition("|")
        is_number = value.ndim == 0 and value.dtype in (torch.int64, torch.float64)
        if owner.startswith(GROUP):
            optimizer.param_groups[int(owner.removeprefix(GROUP))][key] = value.item()
        else:
            parameter = parameters[owner]
            optimizer.state[parameter][key] = value.item() if is_number else _placed_like(parameter, value)


def _as_tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        # One table of 8-bit codes serves all parameters; safetensors takes no memory twice.
        return value.clone() if key.startswith("qmap") else value
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a saved value where its parameter is, split and laid out in memory as that one: kernels rely on it."""
    placed = split_like(parameter, value)
    if isinstance(placed, DTensor) or placed.shape != parameter.shape or placed.stride() == parameter.stride():
        return placed
    return torch.empty_like(parameter, dtype=placed.dtype, requires_grad=False).copy_(placed)


def save_state(folder: Path, state: RunState, keep: int) -> Path:
    """Write a state and, once it is on the disk, remove those of later steps and all but the newest `keep`.

    A state of a later step is of a future that is lost: the run went back behind it, as where it was damaged.

    Args:
        folder: The run's `states` folder.
        state: What to save.
        keep: How many states stay, >= 1.

    Returns:
        The new state's folder.

    Raises:
        VegaError: It could not be written (a full disk); nothing older was touched.
    """
    target = folder / f"step-{state.step:08d}"

    def write(where: Path) -> None:
        for name in ("student", "ema", "optimizer"):
            save_tensors(where / f"{name}.safetensors", getattr(state, name))
        (where / "state.json").write_text(json.dumps({"step": state.step, **state.extra}), encoding="utf-8")

    write_folder(target, write)
    states = _complete(folder)
    past = states[: states.index(target) + 1]
    for old in (*past[:-keep], *states[len(past) :]):
        shutil.rmtree(old)
    for half in folder.glob(".tmp-*"):  # left by a killed process; ours has been renamed
        shutil.rmtree(half, ignore_errors=True)
    return target


def load_newest_state(folder: Path, warn: Callable[[str], None]) -> RunState | None:
    """Return the newest state that verifies, or None where there is none.

    Args:
        folder: The run's `states` folder.
        warn: Called with one line for every damaged state that is passed over.

    Raises:
        VegaError: There are states, and all of them are damaged.
    """
    candidates = _complete(folder)
    for path in reversed(candidates):
        try:
            verify(path)
        except VegaError as error:
            warn(f"{error}; trying the one before")
            continue
        extra = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {name: load_file(path / f"{name}.safetensors") for name in ("student", "ema", "optimizer")}
        return RunState(step=extra.pop("step"), extra=extra, **tensors)
    if candidates:
        raise VegaError(f"{folder}: every saved state is damaged; remove the folder to start anew")
    return None


def write_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Make a folder in one go: written under a temporary name, with a manifest, synced, then renamed.

    An existing folder of that name is replaced only at the end.

    Raises:
        VegaError: The disk is full or not writable; the target is as it was.
    """
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}"
    old = target.parent / f".tmp-old-{target.name}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(temporary)): _described(path) for path in files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*files, temporary / MANIFEST, temporary):
            _sync(path)
        if target.exists():
            os.rename(target, old)
        os.rename(temporary, target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise VegaError(f"{target}: cannot be saved ({error}); free disk space, older states are kept") from error
    shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> None:
    """Check a folder against its manifest.

    Raises:
        VegaError: A file is missing, has another size or another hash.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name, entry in manifest.items() if _described(folder / name) != entry]
    except (OSError, ValueError) as error:
        raise VegaError(f"{folder}: damaged ({error})") from error
    if damaged:
        raise VegaError(f"{folder}: damaged (hash or size of {', '.join(damaged)} differs)")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, on the CPU and contiguous."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit())


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
