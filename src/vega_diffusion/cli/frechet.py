"""`vega evaluate frechet`: how far a folder of pictures is from real scenes, by an embedding that is not ours."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.errors import InvalidValue

if TYPE_CHECKING:
    from vega_diffusion.evaluation.frechet_folder import FrechetReport


def run(argv: list[str]) -> int:
    """Run the sub-verb.

    Returns:
        0 done.
    """
    return run_verb("evaluate frechet", frechet, argv)


def frechet(
    folder: Annotated[str, tyro.conf.Positional, text("FOLDER")],
    /,
    count: Annotated[str | None, text("N", "1000")] = None,
    seed: Annotated[str | None, text("INT", "0")] = None,
    icons: Annotated[str | None, text("FOLDER", "$VEGA_HOME/icons, else the sample in the package")] = None,
    reference: Annotated[str | None, text("FOLDER", "scenes of the split dev, drawn and kept in $VEGA_HOME")] = None,
    json: bool = False,
) -> int:
    """Measure FD-EffNet (Frechet distance of EfficientNet-Lite0 features) and the kernel distance of a folder of PNGs.

    Lower is better. Both stand beside the values of as many fresh real scenes. Needs the extra eval.

    Args:
        folder: PNG pictures of 128 x 128 px, or the folder of a finished evaluation.
        count: How many real scenes to compare with.
        seed: Names the stream of scenes.
        icons: Folder that vega data icons filled.
        reference: A folder of real pictures to compare with in place of scenes.
        json: Print one JSON object as the last line.
    """
    from tqdm import tqdm

    from vega_diffusion.evaluation.frechet_folder import effnet_embedding, folder_statistics, measure_folder

    started = time.monotonic()
    pictures = Path(folder).expanduser()
    if reference is not None:
        for flag, value in (("--count", count), ("--seed", seed), ("--icons", icons)):
            if value is not None:
                raise InvalidValue(flag, value, "nothing beside --reference", f"leave {flag} or --reference out")
        embedding = effnet_embedding()
        with tqdm(unit="picture", file=sys.stderr, disable=None) as bar:
            known = folder_statistics(Path(reference).expanduser(), embedding, bar.update)
            report = measure_folder(pictures, known, embedding, described=reference, progress=bar.update)
    else:
        report = _against_scenes(pictures, _number("--count", count), _number("--seed", seed), icons)
    _print(report, time.monotonic() - started, json)
    return 0


def _against_scenes(pictures: Path, count: int | None, seed: int | None, icons: str | None) -> FrechetReport:
    from tqdm import tqdm

    from vega_diffusion.data.scene_images import icons_folder
    from vega_diffusion.evaluation.frechet_folder import (
        DEFAULT_COUNT,
        check_stream,
        effnet_embedding,
        measure_folder,
        picture_paths,
        scene_renderer,
        scene_statistics,
    )
    from vega_diffusion.training.run_directory import vega_home

    count, seed = DEFAULT_COUNT if count is None else count, seed or 0
    check_stream(count, seed)
    embedding = effnet_embedding()
    same = len(picture_paths(pictures))
    source = icons_folder(icons, vega_home())
    renderer = scene_renderer(icons)
    kept = vega_home() / "frechet"
    with tqdm(total=count + 2 * same, unit="picture", file=sys.stderr, disable=None) as bar:
        known = scene_statistics(renderer, embedding, start=0, count=count, seed=seed, home=kept, progress=bar.update)
        real = scene_statistics(renderer, embedding, start=count, count=same, seed=seed, home=kept, progress=bar.update)
        described = f"scenes of split dev, seed {seed}, icons {source or 'of the package'}"
        return measure_folder(pictures, known, embedding, described=described, real=real, progress=bar.update)


def _number(flag: str, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return int(value)
    except ValueError as error:
        raise InvalidValue(flag, value, "a whole number", "give a number") from error


def _print(report: FrechetReport, seconds: float, json: bool) -> None:
    from dataclasses import asdict

    if json:
        print(jsonlib.dumps({**asdict(report), "seconds": round(seconds, 2)}))
        return
    against = f"{report.num_reference} pictures ({report.reference})"
    print(f"{report.num_images} pictures of {report.folder} against {against}")
    rows = [("these pictures", report.fd_effnet, report.kernel_distance)]
    if report.real_fd_effnet is not None and report.real_kernel_distance is not None:
        rows.append((f"{report.num_images} fresh real scenes", report.real_fd_effnet, report.real_kernel_distance))
    print(f"{'':<28} {'FD-EffNet':>10} {'kernel distance':>16}")
    for name, distance, kernel in rows:
        print(f"{name:<28} {distance:>10.3f} {kernel:>16.5f}")
