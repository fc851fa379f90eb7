"""`SceneChecker`: a small network that says what a picture shows, and the folder that it lives in.

Objects are found as peaks on a grid (Zhou et al. 2019, "Objects as Points", arXiv 1904.07850), whatever their kind;
what a peak is, which colour and drawing style it has and how large it is are read in its cell. A style looks different
in every noun, so the likeliest noun chooses the weights that tell styles apart; the picture's style is what its objects
say together. The background belongs to the whole picture. What does not live here: training it
(`objectives/scene_checking.py`) and what a finding is held against (`evaluation/`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn import functional

from vega_diffusion.errors import MissingFile, UnreadableModel, VegaError
from vega_diffusion.models.detections import Detection, Finding
from vega_diffusion.models.layout import read_json
from vega_diffusion.models.peaks import peaks
from vega_diffusion.specs.checker import STRIDE_PX, CheckerSpec

CONFIG, WEIGHTS, RECORD = "config.json", "model.safetensors", "checker.json"
POOLED_PX = 32  # side of the patches whose mean colours the whole-picture head sees
_RARE = -4.0  # first logit of objectness: most cells hold no centre
_TYPICAL = 4.0  # first log side: about 55 px


class CheckerOutput(NamedTuple):
    """What the network says, as logits.

    Attributes:
        objectness: `[B, G, G]`, is the centre of an object in this cell.
        nouns: `[B, N, G, G]`.
        colours: `[B, C, G, G]`.
        styles: `[B, S, G, G]`.
        boxes: `[B, 4, G, G]`: offset x, y of the object's centre from the cell's in cells, log width and height in px.
        background: `[B, K]`.
    """

    objectness: Tensor
    nouns: Tensor
    colours: Tensor
    styles: Tensor
    boxes: Tensor
    background: Tensor


class _Convolution(nn.Sequential):
    def __init__(self, before: int, after: int, groups: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(groups, after), nn.ReLU(inplace=True)
        )


class _Residual(nn.Module):
    """x + two convolutions of x, the last norm of which starts at zero."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = _Convolution(width, width, groups)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.GroupNorm(groups, width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.second(self.first(x))))


class SceneChecker(nn.Module):
    """Pixels -> objects, style and background.

    Args:
        spec: Widths and names.
    """

    def __init__(self, spec: CheckerSpec) -> None:
        super().__init__()
        self.spec = spec
        w1, w2, w3, w4, w5 = spec.widths
        groups, neck = spec.groups, spec.neck_width
        self.stem = nn.Sequential(nn.Conv2d(3, w1, 3, 2, 1), nn.ReLU(inplace=True))
        self.stage2 = nn.Sequential(_Convolution(w1, w2, groups, 2), _Residual(w2, groups))
        self.stage3 = nn.Sequential(_Convolution(w2, w3, groups, 2), _Residual(w3, groups))
        self.stage4 = nn.Sequential(_Convolution(w3, w4, groups, 2), _Residual(w4, groups))
        self.stage5 = nn.Sequential(_Convolution(w4, w5, groups, 2), _Convolution(w5, w5, groups))
        self.lateral3 = nn.Conv2d(w2 + w3 + 3, neck, 1)
        self.lateral4 = nn.Conv2d(w4, neck, 1)
        self.lateral5 = nn.Conv2d(w5, neck, 1)
        self.neck = _Convolution(neck, neck, groups)
        self._parts = (1, len(spec.nouns), len(spec.colours), 4)
        self.cells = nn.Conv2d(neck, sum(self._parts), 1)
        self.style_of_noun = nn.Parameter(torch.randn(len(spec.nouns), len(spec.styles) * neck) * 0.01)
        patches = 3 * (spec.image_px // POOLED_PX) ** 2
        self.whole = nn.Sequential(
            nn.Linear(2 * sum(spec.widths) + patches, spec.whole_width),
            nn.ReLU(inplace=True),
            nn.Linear(spec.whole_width, len(spec.styles) + len(spec.backgrounds)),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.cells.weight, std=0.01)
        first = torch.zeros(sum(self._parts))
        first[0], first[-2:] = _RARE, _TYPICAL
        self.cells.bias = nn.Parameter(first)

    def forward(self, pixels: Tensor) -> CheckerOutput:
        """Return the logits for pictures `[B, 3, image_px, image_px]` in [-1, 1]."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        level1 = self.stem(pixels)
        level2 = self.stage2(level1)
        level3 = self.stage3(level2)
        level4 = self.stage4(level3)
        level5 = self.stage5(level4)
        coarse = self.lateral4(level4) + functional.interpolate(self.lateral5(level5), scale_factor=2.0)
        near = torch.cat([functional.avg_pool2d(level2, 2), level3, functional.avg_pool2d(pixels, STRIDE_PX)], dim=1)
        grid = self.neck(self.lateral3(near) + functional.interpolate(coarse, scale_factor=2.0))
        objectness, nouns, colours, boxes = self.cells(grid).split(self._parts, dim=1)
        statistics = [part for level in (level1, level2, level3, level4, level5) for part in _mean_and_spread(level)]
        patches = functional.avg_pool2d(pixels, POOLED_PX).flatten(1)
        both = self.whole(torch.cat([*statistics, patches], dim=1))
        style, background = both.split((len(self.spec.styles), len(self.spec.backgrounds)), dim=1)
        styles = self._styles(grid, nouns) + style[:, :, None, None]
        return CheckerOutput(objectness[:, 0], nouns, colours, styles, boxes, background)

    def _styles(self, grid: Tensor, nouns: Tensor) -> Tensor:
        """Return style logits `[B, S, G, G]`: every cell's features times the weights of its noun."""
        weights = nouns.detach().softmax(1).permute(0, 2, 3, 1) @ self.style_of_noun
        features = grid.permute(0, 2, 3, 1)[..., None, :]
        return (weights.unflatten(-1, (len(self.spec.styles), -1)) * features).sum(-1).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def find(self, pixels: Tensor) -> list[Finding]:
        """Say what pictures show.

        Args:
            pixels: float32 `[B, 3, image_px, image_px]` in [-1, 1].

        Raises:
            VegaError: The pictures have another size.
        """
        side = self.spec.image_px
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise VegaError(
                f"pixels: shape {tuple(pixels.shape)}; allowed: (B, 3, {side}, {side}); resize the pictures"
            )
        output = self(pixels)
        return [self._finding(output, row) for row in range(len(pixels))]

    def _finding(self, output: CheckerOutput, row: int) -> Finding:
        found = peaks(output.objectness[row].sigmoid(), output.boxes[row], self.spec)
        detections = []
        for y, x, score, box in found:
            noun = output.nouns[row, :, y, x].softmax(0)
            best = int(noun.argmax())
            colour = int(output.colours[row, :, y, x].argmax())
            detections.append(
                Detection(self.spec.nouns[best], float(noun[best]), self.spec.colours[colour], box, score)
            )
        # Every object votes for the style as surely as it is there; without one, the likeliest place of one does.
        likeliest = divmod(int(output.objectness[row].argmax()), self.spec.grid)
        voters = [(y, x, score) for y, x, score, _ in found] or [(*likeliest, 1.0)]
        votes = torch.stack([score * output.styles[row, :, y, x].log_softmax(0) for y, x, score in voters])
        style, background = int(votes.sum(0).argmax()), int(output.background[row].argmax())
        return Finding(tuple(detections), self.spec.backgrounds[background], self.spec.styles[style])


def _mean_and_spread(level: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the picture, `[B, C]` each."""
    mean = level.mean((2, 3))
    return mean, (level.square().mean((2, 3)) - mean.square()).clamp_min(1e-4).sqrt()


def default_checker_folder() -> Path:
    """Return the folder of the checker that comes with the package.

    Raises:
        MissingFile: This copy of the package comes without one.
    """
    folder = Path(str(files("vega_diffusion") / "assets" / "checker"))
    if not (folder / WEIGHTS).is_file():
        raise MissingFile(
            f"{folder}: no checker there; train recipes/scene-checker-cpu.toml and run scripts/publish_checker.py"
        )
    return folder


def write_checker(
    folder: Path, checker: SceneChecker, dtype: torch.dtype = torch.float32, provenance: Mapping[str, Any] | None = None
) -> str:
    """Write config, weights and the record of their hashes into a folder that exists.

    Args:
        folder: Where to.
        checker: The network.
        dtype: Of the weights on disk; float16 halves the file.
        provenance: Where the weights come from, for the record.

    Returns:
        SHA-256 of the weight file.
    """
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in checker.state_dict().items()}
    (folder / CONFIG).write_text(checker.spec.to_json(indent=1) + "\n", encoding="utf-8")
    save_file(dict(sorted(tensors.items())), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors keeps others from reading its files
    hashes = {name: _sha256(folder / name) for name in (CONFIG, WEIGHTS)}
    record = {"sha256": hashes, "provenance": dict(provenance or {})}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return hashes[WEIGHTS]


def read_checker(folder: Path | None = None, expected_sha256: str | None = None) -> SceneChecker:
    """Read a checker, in float32, in evaluation mode, on the CPU.

    Args:
        folder: What `write_checker` wrote; None takes the one of the package.
        expected_sha256: What the weight file must hash to, beside the record in the folder.

    Raises:
        MissingFile: The folder or a file is not there.
        UnreadableModel: A file does not match its recorded hash, or config and weights do not fit each other.
    """
    home = folder or default_checker_folder()
    recorded = read_json(home / RECORD).get("sha256")
    if not isinstance(recorded, dict):
        raise UnreadableModel(f"{home / RECORD}: holds no sha256; fetch the checker again")
    blobs = {name: _read(home / name) for name in (CONFIG, WEIGHTS)}
    for name, blob in blobs.items():
        found, wanted = hashlib.sha256(blob).hexdigest(), recorded.get(name)
        for allowed in (wanted, expected_sha256 if name == WEIGHTS else None):
            if wanted is None or (allowed is not None and found != allowed):
                raise UnreadableModel(
                    f"{home / name}: sha256 is {found}, allowed: {allowed}; results of two checkers do not compare, "
                    "fetch the recorded one again"
                )
    checker = SceneChecker(CheckerSpec.from_json(blobs[CONFIG].decode()))
    try:
        tensors = load(blobs[WEIGHTS])
        checker.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UnreadableModel(f"{home / WEIGHTS}: does not fit its config ({reason}); fetch it again") from error
    return checker.eval().requires_grad_(False)


def checker_digest(folder: Path | None = None) -> str:
    """Return the recorded SHA-256 of a checker's weights, which names it in results."""
    return str(read_json((folder or default_checker_folder()) / RECORD)["sha256"][WEIGHTS])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingFile(f"{path}: cannot be read ({error.strerror}); fetch the checker again") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
