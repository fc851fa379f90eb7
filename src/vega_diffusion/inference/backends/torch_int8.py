"""8 bits in torch, for GPUs: layers multiply whole numbers, convolutions included, and nothing is calibrated.

Weights have a scale for each output channel. What a layer is asked is measured as it comes and has a scale for each
row: a token of a matrix product, a sample of a convolution; so rows of different pictures do not touch one another.
Convolutions are matrix products of patches, since torch has no 8-bit ones. Sums are exact, in 32 bits.

On a CPU the same numbers are multiplied in float32, which shows what they do to a picture and saves no time.

Source: scales by token and by channel: Yao et al., ZeroQuant, arXiv 2206.01861, section 4.1; patches: Chellapilla et
al., High Performance Convolutional Neural Networks for Document Processing (2006), section 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DEVICES = ("cuda", "meta")
"""Kinds of devices for which torch multiplies 8-bit numbers at speed; `meta` has shapes alone."""

_LARGEST = 127.0
# As CUDA's int8 kernels want them: sizes that 8 divides, and more than 16 rows.
_MULTIPLE, _MIN_ROWS = 8, 17
# One row a picture: too few to gain anything, and every layer depends on them.
_WIDE = ("time_emb_proj",)


class Int8Linear(nn.Module):
    """A linear layer in 8 bits: `[..., K]` to `[..., N]`, in the dtype of what it is asked."""

    def __init__(self, wide: nn.Linear) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = _stored(wide.weight, wide.bias)

    def forward(self, asked: Tensor) -> Tensor:
        """Return the layer's answer."""
        numbers, scale = _in_8_bits(asked, (-1,))
        made = _product(numbers.flatten(0, -2), self.weight).unflatten(0, asked.shape[:-1])
        return _answer(made, scale * self.scale, self.bias, asked.dtype)


class Int8Conv2d(nn.Module):
    """A convolution in 8 bits: `[N, C, H, W]` to `[N, O, H', W']` laid out channels last, in the dtype of its input."""

    def __init__(self, wide: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = _stored(wide.weight.permute(0, 2, 3, 1).flatten(1), wide.bias)
        assert not isinstance(wide.padding, str), "those stay as they are"
        self._kernel, self._stride, self._padding = wide.kernel_size, wide.stride, wide.padding

    def forward(self, asked: Tensor) -> Tensor:
        """Return the layer's answer."""
        numbers, scale = _in_8_bits(asked, (1, 2, 3))
        patches = self._patches(numbers)
        made = _product(patches.flatten(3).flatten(0, 2), self.weight).unflatten(0, patches.shape[:3])
        return _answer(made, scale * self.scale, self.bias, asked.dtype).permute(0, 3, 1, 2)

    def _patches(self, numbers: Tensor) -> Tensor:
        """Return what each cell of the answer is made of: `[N, H', W', kernel height, kernel width, C]`."""
        (below, beside), (down, right) = self._padding, self._stride
        cells = functional.pad(numbers.permute(0, 2, 3, 1), (0, 0, beside, beside, below, below))
        found = cells.unfold(1, self._kernel[0], down).unfold(2, self._kernel[1], right)
        return found.permute(0, 1, 2, 4, 5, 3)


def in_8_bits(unet: nn.Module) -> nn.Module:
    """Put a U-Net's layers into 8 bits, and return it.

    Its first and last convolution and what makes the embedding of time stay as they are: less than a thousandth of the
    work.

    Args:
        unet: Of diffusers, on its device, in its dtype; changed.
    """
    with torch.inference_mode(False):
        for name in ("down_blocks", "mid_block", "up_blocks"):
            blocks = getattr(unet, name, None)
            for module in [] if blocks is None else list(blocks.modules()):
                for path, layer in list(module.named_children()):
                    if path not in _WIDE and _is_fit(layer):
                        kind = Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d
                        setattr(module, path, kind(layer))  # type: ignore[arg-type]
    return unet


def is_in_8_bits(unet: nn.Module) -> bool:
    """Return whether layers of a U-Net multiply 8-bit numbers."""
    return any(isinstance(module, Int8Linear | Int8Conv2d) for module in unet.modules())


def _is_fit(layer: nn.Module) -> bool:
    """Whether a layer can be in 8 bits on a GPU."""
    if type(layer) is nn.Linear:
        return layer.in_features % _MULTIPLE == 0 == layer.out_features % _MULTIPLE
    if type(layer) is not nn.Conv2d:
        return False
    is_plain = layer.groups == 1 and layer.dilation == (1, 1) and not isinstance(layer.padding, str)
    return is_plain and layer.in_channels % _MULTIPLE == 0 == layer.out_channels % _MULTIPLE


def _stored(matrix: Tensor, bias: Any) -> tuple[nn.Buffer, nn.Buffer, nn.Buffer | None]:
    numbers, scale = _in_8_bits(matrix.detach(), (1,))
    return nn.Buffer(numbers), nn.Buffer(scale[:, 0]), None if bias is None else nn.Buffer(bias.detach())


def _in_8_bits(tensor: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return whole numbers, -127 to 127, and their scale in float32, one for all of `dims`."""
    wide = tensor.float()
    scale = wide.abs().amax(dims, keepdim=True).clamp_min(1e-12) / _LARGEST
    return (wide / scale).round().to(torch.int8), scale


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right.T` of 8-bit numbers, `[M, K]` and `[N, K]`."""
    if left.device.type == "cpu":
        return left.float() @ right.float().t()
    count = left.shape[0]
    padded = functional.pad(left, (0, 0, 0, max(0, _MIN_ROWS - count)))
    return torch._int_mm(padded, right.t())[:count]


def _answer(made: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    wide = made.float() * scale
    return (wide if bias is None else wide + bias.float()).to(dtype)
