"""Pictures of scenes, drawn at the moment they are needed: the data of autoencoder training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scene_stream import SceneStream
from vega_diffusion.data.scenes.renderer import SceneRenderer


class SceneImages:
    """Sample p of the run is the picture of scene p: no picture comes twice, and nothing is stored.

    Args:
        renderer: Draws the scenes.
        stream: Chooses them.
        seed: Seed of the scenes.
        version: What decides the pixels (icons, digest of the stream), for the fingerprint.
    """

    def __init__(self, renderer: SceneRenderer, stream: SceneStream, seed: int, version: str) -> None:
        self.renderer, self.stream, self.seed, self.version = renderer, stream, seed, version

    def load(self, positions: Sequence[int]) -> Batch:
        """Return `pixels`, float32 `[B, 3, 128, 128]` in [-1, 1]."""
        pixels = self.renderer.render([self.stream(self.seed, position) for position in positions])
        return Batch([f"scene {self.seed}/{position}" for position in positions], {"pixels": pixels})

    def fingerprint(self) -> str:
        """Return seed and version."""
        return f"scene_images seed={self.seed} {self.version}"


def icons_folder(given: str | None, home: Path) -> Path | None:
    """Return the folder of sprites: the given one, else `icons` in `$VEGA_HOME`, else None (the package's sample)."""
    if given is not None:
        return Path(given).expanduser()
    full = home / "icons"
    return full if (full / "index.json").is_file() else None
