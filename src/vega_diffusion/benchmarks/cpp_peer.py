"""A peer: stable-diffusion.cpp through its Python binding, timed between two of its steps.

It draws whole pictures alone, so each timing draws one of two steps and takes what lies between the ends of the two:
one step, as its own sampler runs it; prompt and decoding are outside. Its weights are the case's own, written once in
float16 to a single file, which it turns into its own types.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.protocol import Timing, processor_seconds
from vega_diffusion.errors import InvalidValue, Unavailable

if TYPE_CHECKING:
    from vega_diffusion.specs.architecture import ModelSpec

CPP = "stable-diffusion.cpp"
# Our precisions -> its types of weights; it multiplies in fp32 or, for 8 bits, in int8 (ggml's q8_0).
TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "q8_0"}
_STEPS = 2


class CppUNet:
    """A model in stable-diffusion.cpp, of which single steps are timed."""

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
        model = _binding()
        self._size_px, self._guidance = size_px, 5.0 if rows == 2 else 1.0
        with ExitStack() as until_loaded:
            folder = Path(until_loaded.enter_context(TemporaryDirectory(prefix="vega-cpp-")))
            file = folder / "model.safetensors"
            _write(file, spec, build)
            self._model = model(
                model_path=str(file), n_threads=threads, wtype=TYPES[precision], verbose=False, vae_decode_only=True
            )
        self.in_use = f"{CPP} {TYPES[precision]}"

    def step(self) -> Timing:
        """Draw a picture of two steps and return the timing of the second.

        Raises:
            RuntimeError: It did not say when its steps ended.
        """
        ends: list[tuple[float, float]] = []

        def note(step: int, steps: int, _: float) -> None:
            if steps == _STEPS:
                ends.append((time.perf_counter(), processor_seconds()))

        self._model.generate_image(
            prompt="",
            width=self._size_px,
            height=self._size_px,
            sample_steps=_STEPS,
            sample_method="euler",
            cfg_scale=self._guidance,
            seed=0,
            progress_callback=note,
        )
        if len(ends) < _STEPS:
            raise RuntimeError(f"{CPP}: told of {len(ends)} of {_STEPS} steps")
        (wall, cpu), (wall_after, cpu_after) = ends[-2:]
        return Timing(wall_after - wall, cpu_after - cpu)


def _binding() -> Any:
    """Return the binding's class.

    Raises:
        Unavailable: It is not installed.
    """
    try:
        return import_module("stable_diffusion_cpp").StableDiffusion
    except ImportError as error:
        raise Unavailable(
            f"contestants: {CPP} needs its binding, which is not installed; pip install stable-diffusion-cpp-python"
        ) from error


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
