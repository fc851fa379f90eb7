"""A recipe's endless stream of scenes, and a fingerprint that notices when the same recipe draws other scenes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial

from vega_diffusion.data.scenes.captions import caption
from vega_diffusion.data.scenes.grammar import SceneMix, sample_scene
from vega_diffusion.data.scenes.scene import Scene
from vega_diffusion.specs.data import SceneMixSpec

SceneStream = Callable[[int, int], Scene]
"""(seed, position) -> the scene at that position; a pure function."""

PROBES = 64


def scene_stream(spec: SceneMixSpec) -> SceneStream:
    """Return the training scenes of a mix; held-out combinations never come.

    Raises:
        InvalidValue: A kind, style or noun is not known.
    """
    return partial(sample_scene, split="train", mix=scene_mix(spec))


def scene_mix(spec: SceneMixSpec) -> SceneMix:
    """Return the mix that a recipe describes.

    Raises:
        InvalidValue: A kind, style or noun is not known.
    """
    given = {name: value for name, value in spec.model_dump().items() if value is not None}
    if "kinds" in given:
        given["kinds"] = tuple(given["kinds"].items())
    return SceneMix(**given)


def stream_digest(stream: SceneStream, seed: int) -> str:
    """Return a hash of the first scenes and captions: a changed grammar, vocabulary or phrasing changes it."""
    scenes = [stream(seed, position) for position in range(PROBES)]
    said = [[scene.to_dict(), caption(scene, seed, position)] for position, scene in enumerate(scenes)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def phrasings(scene: Scene, position: int, count: int, *, seed: int) -> list[str]:
    """Return `count` captions of the scene at a position; a pure function."""
    return [caption(scene, seed, position * count + number) for number in range(count)]
