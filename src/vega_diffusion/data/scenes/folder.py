"""Writes scenes as an ordinary folder of pictures and captions ("imagefolder"), as other trainers read it.

Layout: `scene-0000000.png`, ... and `metadata.jsonl` with `file_name`, `text`, `seed`, `position` and the exact
`scene`; the hidden `.scenes.json` says what the folder holds, so that an interrupted writing can go on.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.captions import caption
from vega_diffusion.data.scenes.filters import FILTERS, apply_filter
from vega_diffusion.data.scenes.grammar import SceneMix, sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.scene import Scene
from vega_diffusion.data.scenes.subjects import Subject, place_subject, with_subjects
from vega_diffusion.errors import InvalidValue, MissingFile, VegaError

BATCH = 32
MARKER = ".scenes.json"
METADATA = "metadata.jsonl"
SUBJECT_KINDS = (("single", 1.0), ("background", 1.0), ("place", 1.0))
ANY_NOUN = "artist"
"""What a subject without a noun of its own stands in for."""


def write_scene_folder(
    folder: Path,
    load_atlas: Callable[[], SpriteAtlas],
    *,
    count: int,
    seed: int = 0,
    split: str = "train",
    mix: SceneMix | None = None,
    filter_name: str | None = None,
    subject: Subject | None = None,
    progress: Callable[[int], object] = lambda pictures: None,
) -> dict[str, int]:
    """Write the first `count` scenes of a stream; what an earlier, interrupted call has written is kept.

    Every file appears under its name only when it is whole; `metadata.jsonl` comes last.

    Args:
        folder: Is created; must be empty or hold the same stream already (then it may grow).
        load_atlas: Brings the sprites; called only when the values are right and pictures are missing.
        count: Number of scenes, 1 or more.
        seed: Names the stream, 0 or more.
        split: See `splits.in_split`.
        mix: How often what is drawn.
        filter_name: A filter style of all pictures; their captions end in ", NAME style".
        subject: Stands alone in every scene, in place of its noun.
        progress: Receives how many pictures more are there.

    Returns:
        "written" and "kept": numbers of pictures.

    Raises:
        InvalidValue: A value is not allowed.
        MissingFile: The folder cannot be made or written.
        VegaError: The folder holds something else.
    """
    if count < 1:
        raise InvalidValue("count", count, "1 or more", "say how many scenes to write")
    if seed < 0:
        raise InvalidValue("seed", seed, "0 or more", "choose another seed")
    if filter_name is not None and filter_name not in FILTERS:
        raise InvalidValue("filter", filter_name, f"one of: {', '.join(FILTERS)}", "choose one of them")
    mix = mix or SceneMix()
    if subject is None:
        scenes = [sample_scene(seed, position, split=split, mix=mix) for position in range(count)]
        texts = [caption(scene, seed, position) for position, scene in enumerate(scenes)]
    else:
        mix = replace(mix, kinds=SUBJECT_KINDS, nouns=(subject.noun or ANY_NOUN,))
        scenes = _scenes_of(subject, mix, count, seed, split)
        texts = [f"a {subject.name}"] * count
    texts = [f"{text}, {filter_name} style" if filter_name else text for text in texts]
    identity: dict[str, Any] = {"seed": seed, "split": split, "mix": repr(mix)}
    identity |= {"filter": filter_name} if filter_name else {}
    identity |= {"subject": subject.name} if subject else {}
    try:
        kept = _claim(folder, identity, count)
        missing = [position for position in range(count) if position not in kept]
        progress(count - len(missing))
        renderer = _renderer(load_atlas(), subject) if missing else None
        for start in range(0, len(missing), BATCH):
            chunk = missing[start : start + BATCH]
            assert renderer is not None
            _write_pictures(folder, renderer, scenes, chunk, filter_name)
            progress(len(chunk))
        rows = [json.dumps(_row(scene, seed, place, texts[place])) for place, scene in enumerate(scenes)]
        _write_whole(folder / METADATA, ("\n".join(rows) + "\n").encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise MissingFile(
            f"{folder}: cannot be written ({reason}); free space there or choose another folder"
        ) from error
    return {"written": len(missing), "kept": count - len(missing)}


def picture_name(position: int) -> str:
    """Return the file name of a scene's picture."""
    return f"scene-{position:07d}.png"


def _renderer(atlas: SpriteAtlas, subject: Subject | None) -> SceneRenderer:
    styles = sorted({style for style, _ in atlas.index})
    return SceneRenderer(atlas if subject is None else with_subjects(atlas, styles))


def _scenes_of(subject: Subject, mix: SceneMix, count: int, seed: int, split: str) -> list[Scene]:
    """Return the first scenes of a stream whose background a subject stands out from, with the subject in them."""
    stream = (sample_scene(seed, position, split=split, mix=mix) for position in itertools.count())
    fitting = (scene for scene in stream if scene.background in subject.backgrounds)
    found = itertools.islice(fitting, count)
    return [replace(one, objects=tuple(place_subject(subject, placed) for placed in one.objects)) for one in found]


def _row(scene: Scene, seed: int, position: int, text: str) -> dict[str, Any]:
    return {
        "file_name": picture_name(position),
        "text": text,
        "seed": seed,
        "position": position,
        "scene": scene.to_dict(),
    }


def _claim(folder: Path, identity: dict[str, Any], count: int) -> set[int]:
    """Take a folder for one stream of scenes and return the positions whose pictures are there."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if not marker.exists():
        if any(folder.iterdir()):
            raise VegaError(f"output: {folder} is not empty and holds no scenes of ours; choose a new folder")
        _write_whole(marker, (json.dumps(identity, indent=1) + "\n").encode())
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VegaError(f"{marker}: cannot be read ({error}); choose a new folder") from error
    if found != identity:
        differing = ", ".join(name for name in identity if found.get(name) != identity[name])
        raise VegaError(f"output: {folder} holds scenes with another {differing}; choose a new folder")
    for leftover in folder.glob(".*.part"):
        leftover.unlink()
    positions = {int(path.stem.removeprefix("scene-")) for path in folder.glob("scene-*.png")}
    if positions and max(positions) >= count:
        least = max(positions) + 1
        raise InvalidValue("count", count, f"{least} or more, as many as {folder} holds", "or choose a new folder")
    return positions


def _write_pictures(
    folder: Path,
    renderer: SceneRenderer,
    scenes: Sequence[Scene],
    positions: Sequence[int],
    filter_name: str | None,
) -> None:
    from io import BytesIO

    from PIL import Image

    drawn = renderer.render([scenes[position] for position in positions])
    if filter_name is not None:
        drawn = apply_filter(filter_name, drawn)
    pixels = ((drawn + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for position, picture in zip(positions, pixels, strict=True):
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        _write_whole(folder / picture_name(position), buffer.getvalue())


def _write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name first: a file with its final name is always complete."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
