"""A peer: stable-diffusion.cpp through its Python binding, in a process of its own that stops after every step.

It draws whole pictures alone, so it is given one of very many steps, which goes on by one whenever a step is to be
timed: prompt and decoding are outside. Its weights are the case's own, written once in float16 to a single file, which
it turns into its own types.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.protocol import Timing, processor_seconds
from vega_diffusion.errors import InvalidValue, Unavailable

if TYPE_CHECKING:
    from vega_diffusion.specs.architecture import ModelSpec

CPP = "stable-diffusion.cpp"
_BINDING = "stable_diffusion_cpp"
# Our precisions -> its types of weights; it multiplies in fp32 or, for 8 bits, in int8 (ggml's q8_0).
TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "q8_0"}
_STEPS = 999  # of the picture, which is never done


class CppUNet:
    """A model in stable-diffusion.cpp, of which single steps are timed; its process ends with this one."""

    def __init__(
        self, spec: ModelSpec, build: Callable[[str], Any], precision: str, size_px: int, rows: int, threads: int
    ) -> None:
        """Write the weights where it can read them, and load them.

        Args:
            spec: The model.
            build: Returns a component in float32: `unet`, `vae`, `text_encoder`, `text_encoder_2`.
            precision: Of its weights, one of `TYPES`.
            size_px: Side of the picture, px.
            rows: 1, or 2 for a guided step, which it evaluates one row after the other.
            threads: Of ggml.

        Raises:
            Unavailable: The binding is not installed.
            InvalidValue: Another precision or number of rows.
        """
        if precision not in TYPES:
            raise InvalidValue("contestants", precision, f"for {CPP} one of: {', '.join(TYPES)}", "choose one of them")
        if rows not in (1, 2):
            raise InvalidValue("rows", rows, f"1 or 2 for {CPP}", "leave that contestant out")
        if find_spec(_BINDING) is None:
            install = "pip install stable-diffusion-cpp-python"
            raise Unavailable(f"contestants: {CPP} needs its binding, which is not installed; {install}")
        spawn = get_context("spawn")
        self._steps, theirs = spawn.Pipe()
        asked = {"width": size_px, "height": size_px, "cfg_scale": 5.0 if rows == 2 else 1.0}
        with TemporaryDirectory(prefix="vega-cpp-") as folder:
            file = Path(folder) / "model.safetensors"
            _write(file, spec, build)
            loading = {"model_path": str(file), "n_threads": threads, "wtype": TYPES[precision]}
            self._process = spawn.Process(target=_draw, args=(theirs, loading, asked), daemon=True)
            self._process.start()
            theirs.close()
            self._told()  # it has the weights, and its first step is done
        self.in_use = f"{CPP} {TYPES[precision]}"

    def step(self) -> Timing:
        """Let it go on by one step.

        Raises:
            RuntimeError: It ended.
        """
        self._steps.send(True)
        return self._told()

    def _told(self) -> Timing:
        try:
            return Timing(*self._steps.recv())
        except EOFError as error:
            self._process.join()
            raise RuntimeError(f"{CPP}: ended with {self._process.exitcode} before its step was done") from error


def _draw(steps: Connection, loading: dict[str, Any], asked: dict[str, Any]) -> None:
    """Draw a picture; tell how long each step took, and wait after it until another is wanted."""
    model = import_module(_BINDING).StableDiffusion(**loading, verbose=False, vae_decode_only=True)
    began = time.perf_counter(), processor_seconds()

    def note(_: int, num_steps: int, __: float) -> None:
        nonlocal began
        if num_steps != _STEPS:
            return  # of something else
        try:
            steps.send((time.perf_counter() - began[0], processor_seconds() - began[1]))
            steps.recv()
        except (EOFError, OSError):
            os._exit(1)  # nobody is there any more; the binding would drop an exception and go on
        began = time.perf_counter(), processor_seconds()

    model.generate_image(prompt="", sample_steps=_STEPS, sample_method="euler", seed=0, progress_callback=note, **asked)


def _write(file: Path, spec: ModelSpec, build: Callable[[str], Any]) -> None:
    """Write a model's components as one file of float16, one network in memory at a time beside what is written."""
    import torch

    from vega_diffusion.models.safetensors_file import write_safetensors
    from vega_diffusion.models.single_file import to_single_file

    has_two = spec.text_encoder_2 is not None
    tensors: dict[str, torch.Tensor] = {}
    for name in ["unet", "vae", "text_encoder", *(["text_encoder_2"] if has_two else [])]:
        state = torch.nn.Module.to(build(name), torch.float16).state_dict()  # diffusers' own warns
        tensors |= to_single_file(name, state, has_two)
    write_safetensors(file, tensors, {})
