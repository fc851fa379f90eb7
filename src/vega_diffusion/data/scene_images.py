"""Pictures of scenes, drawn at the moment they are needed: the data of autoencoder training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import Scene

SceneSampler = Callable[[int, int], Scene]
"""(seed, position) -> the scene at that position; a pure function."""


class SceneImages:
    """Sample p of the run is the picture of scene p: no picture comes twice, and nothing is stored.

    Args:
        renderer: Draws the scenes.
        sampler: Chooses them.
        seed: Seed of the scenes.
        version: What else decides the pixels (the icons), for the fingerprint.
    """

    def __init__(self, renderer: SceneRenderer, sampler: SceneSampler, seed: int, version: str) -> None:
        self.renderer, self.sampler, self.seed, self.version = renderer, sampler, seed, version

    def load(self, positions: Sequence[int]) -> Batch:
        """Return `pixels`, float32 `[B, 3, 128, 128]` in [-1, 1]."""
        pixels = self.renderer.render([self.sampler(self.seed, position) for position in positions])
        return Batch([f"scene {self.seed}/{position}" for position in positions], {"pixels": pixels})

    def fingerprint(self) -> str:
        """Return seed and icons."""
        return f"scene_images seed={self.seed} icons={self.version}"


def icons_folder(given: str | None, home: Path) -> Path | None:
    """Return the folder of sprites: the given one, else `icons` in `$VEGA_HOME`, else None (the package's sample)."""
    if given is not None:
        return Path(given).expanduser()
    full = home / "icons"
    return full if (full / "index.json").is_file() else None
