"""A recipe's endless stream of scenes, a fingerprint of its first ones, and what decides all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from importlib.resources import files

from vega_diffusion.data.scenes.captions import caption
from vega_diffusion.data.scenes.grammar import SceneMix, sample_scene
from vega_diffusion.data.scenes.scene import Scene
from vega_diffusion.specs.data import SceneMixSpec

SceneStream = Callable[[int, int], Scene]
"""(seed, position) -> the scene at that position; a pure function."""

PROBES = 64

# What makes scenes and captions of a mix, in `data/scenes`.
GRAMMAR = ("captions", "grammar", "layout", "scene", "splits", "sprite_facts", "vocabulary", "words")
TABLES = ("sprite_facts.json", "vocabulary.json")


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
    """Return a hash of the first scenes and captions: what changes none of these 64 does not change it."""
    scenes = [stream(seed, position) for position in range(PROBES)]
    said = [[scene.to_dict(), caption(scene, seed, position)] for position, scene in enumerate(scenes)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def stream_identity(spec: SceneMixSpec) -> dict[str, str]:
    """Return what decides every scene and caption of a mix: the mix in full, and a hash of code and tables.

    It changes with a comment in that code, too: to encode anew costs less than to train on other scenes than captions
    say.

    Raises:
        InvalidValue: A kind, style or noun is not known.
    """
    return {"mix": json.dumps(asdict(scene_mix(spec)), sort_keys=True), "grammar": _grammar_digest()}


@cache
def _grammar_digest() -> str:
    folder, total = files("vega_diffusion.data.scenes"), hashlib.sha256()
    for name in (*(f"{module}.py" for module in GRAMMAR), *TABLES):
        total.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()[:16]


def phrasings(scene: Scene, position: int, count: int, *, seed: int) -> list[str]:
    """Return `count` captions of the scene at a position; a pure function."""
    return [caption(scene, seed, position * count + number) for number in range(count)]
