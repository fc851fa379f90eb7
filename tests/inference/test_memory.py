"""Full memory is one line, or tiles: never a library's traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vega_diffusion.inference.components import Components
from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.memory import OutOfMemory, is_out_of_memory, told_in_one_line
from vega_diffusion.specs.request import GenerateRequest

LARGE = GenerateRequest(prompt="a cat", num_steps=1, seed=1, width=640, height=512, guidance_scale=1.0)


def test_what_torch_says_about_full_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        MemoryError(),
        RuntimeError("Check 'ptr' failed: Failed to allocate 8589934592 bytes of memory"),
    ],
)
def test_it_becomes_one_line_with_a_remedy(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemory, match="memory: a picture of 640 x 512 px does not fit .*--profile balanced") as line,
        told_in_one_line(LARGE),
    ):
        raise error
    assert "\n" not in str(line.value)
    with pytest.raises(RuntimeError, match="shapes"), told_in_one_line(LARGE):
        raise RuntimeError("shapes")


class Cramped(torch.nn.Module):
    """An autoencoder on a device whose memory holds maps of some size, and that says so as CUDA does."""

    def __init__(self, vae: Any, most_cells: int) -> None:
        super().__init__()
        self.vae, self.most_cells = vae, most_cells
        self.config, self.dtype = vae.config, vae.dtype

    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> Any:
        if latents[0, 0].numel() > self.most_cells:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return self.vae.decode(latents, return_dict=return_dict)


def test_what_cannot_be_decoded_whole_is_decoded_in_tiles_and_said(tiny_folder: Path) -> None:
    engine = Engine(Components.open(str(tiny_folder), "cpu", "float32", False))
    (whole,) = engine.generate(LARGE)
    assert whole.warnings == ()
    vae = engine.components.vae()
    engine.components._parts["vae"] = Cramped(vae, most_cells=64 * 64)
    (tiled,) = engine.generate(LARGE)
    assert tiled.image.size == whole.image.size
    assert tiled.warnings == ("decoded in tiles of 512 px: there was no memory for the whole picture",)
    engine.components._parts["vae"] = Cramped(vae, most_cells=16)
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        engine.generate(LARGE)
