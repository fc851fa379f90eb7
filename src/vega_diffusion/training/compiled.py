"""Compiled modules are checked before they are trusted: the gradients of one micro-batch, compiled against plain.

A compiler that gets a backward pass wrong raises no error: the loss falls a little, and hours later the model has
learnt nothing. That was measured, not imagined (`docs/log.md`, the autoencoder under torch 2.13 on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vega_diffusion.errors import VegaError

TOLERANCE = 0.1
"""Largest relative difference of a parameter's gradient; bf16 alone gives about 0.02."""

NEGLIGIBLE = 1e-2
"""Gradients shorter than this share of the longest one are rounding noise and not compared."""


def check_compiled(
    names: tuple[str, ...], parameters: Mapping[str, nn.Parameter], backward: Callable[[], None]
) -> None:
    """Compare the gradients of a compiled and of a plain backward pass, and leave none behind.

    Args:
        names: The compiled modules, for the message.
        parameters: What learns, by name.
        backward: Runs one forward and backward pass of the same samples.

    Raises:
        VegaError: A gradient of the compiled pass is missing or differs.
    """
    compiled = _gradients(parameters, backward)
    with torch.compiler.set_stance("force_eager"):
        plain = _gradients(parameters, backward)
    compare_gradients(plain, compiled, f"compile: {', '.join(names)} compiled", "train with --set compile=[]")


def compare_gradients(plain: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str, instead: str) -> None:
    """Compare gradients of the same samples, computed plainly and in another way.

    Args:
        plain: By parameter.
        other: Likewise.
        what: The other way, for the message: "compile: unet compiled".
        instead: What the user can do.

    Raises:
        VegaError: A gradient of the other way is missing or differs.
    """
    longest = max((float(gradient.norm()) for gradient in plain.values()), default=0.0)
    worst, name = 0.0, ""
    for key, gradient in plain.items():
        length = float(gradient.norm())
        if length <= NEGLIGIBLE * longest:
            continue
        difference = float((other[key] - gradient).norm()) / length if key in other else 1.0
        if not difference <= worst:
            worst, name = difference, key
    if not worst <= TOLERANCE:
        raise VegaError(
            f"{what} to other gradients than the plain modules ({name} differs by {worst:.0%}); "
            f"it is wrong here; {instead}"
        )


def _gradients(parameters: Mapping[str, nn.Parameter], backward: Callable[[], None]) -> dict[str, Tensor]:
    backward()
    found = {name: p.grad.detach().float().clone() for name, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return found
