"""When memory runs out: how libraries tell, and the one line that a user sees instead of their words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vega_diffusion.errors import VegaError
from vega_diffusion.specs.request import GenerateRequest


class OutOfMemory(VegaError):
    """A picture does not fit into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an accelerator's or the machine's memory is full."""
    said = str(error)
    on_cpu = "DefaultCPUAllocator" in said and "tried to allocate" in said
    in_openvino = "bad_alloc" in said or "Failed to allocate" in said
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or on_cpu or in_openvino


@contextmanager
def told_in_one_line(request: GenerateRequest) -> Iterator[None]:
    """Turn what libraries say about full memory into one line about a picture.

    Args:
        request: Resolved.

    Raises:
        OutOfMemory: Memory ran out inside the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutOfMemory(
            f"memory: a picture of {request.width} x {request.height} px does not fit ({said[:160]}); allowed: what "
            "fits; choose a smaller width and height, a narrower dtype, or --profile balanced"
        ) from error
