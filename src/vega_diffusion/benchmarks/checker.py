"""Case `checker`: how often the checker is right about real renders that training never drew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import hypot
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from vega_diffusion.benchmarks.report import Bar, Measurement

if TYPE_CHECKING:
    from torch import Tensor

    from vega_diffusion.models.detections import Detection, Finding

# No recipe draws its scenes from this seed.
SEED = 900_002
BATCH = 16
# set -> what it changes of scenes that are clean, uncrowded, unfiltered and without subjects
SETS: dict[str, dict[str, float]] = {
    "plain": {},
    "crowd": {"crowd_rate": 1.0},
    "filter": {"filter_rate": 1.0},
    "subject": {"subject_rate": 1.0},
    "worn": {"worn_rate": 1.0},
}


def measure(checker: str | None = None, num_scenes: int = 512, icons: str | None = None) -> Measurement:
    """Let a checker judge five sets of fresh scenes, all seven styles, all combinations.

    Args:
        checker: Its folder; None takes the one of the package.
        num_scenes: Scenes in each set.
        icons: Folder that `vega data icons` filled; None looks where that command writes.
    """
    from vega_diffusion.data.scene_checks import SceneChecks
    from vega_diffusion.models.checker import checker_digest, read_checker
    from vega_diffusion.specs.data import SceneChecksSpec
    from vega_diffusion.training.sources import load_atlas

    folder = Path(checker) if checker else None
    network = read_checker(folder)
    atlas, version = load_atlas(icons)
    clean = SceneChecksSpec(seed=SEED, crowd_rate=0, subject_rate=0, filter_rate=0, worn_rate=0, spoiled_rate=0)
    all_clean = SceneChecks(clean, atlas, version)
    right: dict[str, list[bool]] = defaultdict(list)
    for name, changes in SETS.items():
        source = all_clean.varied(**changes)
        for first in range(0, num_scenes, BATCH):
            batch = source.load(range(first, min(first + BATCH, num_scenes)))
            for row, finding in enumerate(network.find(batch.tensors["pixels"])):
                for what, values in judge({key: value[row] for key, value in batch.tensors.items()}, finding).items():
                    right[f"{name}_{what}"] += values
    style = right["plain_style"] + right["filter_style"]
    shares = {f"{what}_accuracy": round(fmean(values), 4) for what, values in sorted(right.items()) if values}
    return Measurement(
        samples={what: [float(value) for value in values] for what, values in sorted(right.items())},
        summary=shares
        | {"num_scenes_per_set": num_scenes, "icons": version, "checker_sha256": checker_digest(folder)[:16]},
        bars=(
            Bar(
                what="checker, style (11 styles)",
                measured=round(fmean(style), 4),
                unit="right",
                limit=0.9,
                better="higher",
            ),
            Bar(
                what="checker, subjects",
                measured=round(fmean(right["subject_subject"]), 4),
                unit="right",
                limit=0.95,
                better="higher",
            ),
        ),
        seeds=(SEED,),
        protocol="fresh scenes, split all; an object is right when the nearest detection within half its size is; "
        "merged nouns count as one; count is that of all detections",
    )


def judge(truth: dict[str, Tensor], finding: Finding) -> dict[str, list[bool]]:
    """Hold a finding against one row of `SceneChecks.load`; what has no target is not counted.

    Returns:
        noun, subject and colour (one entry an object), count, style and background (one entry).
    """
    from vega_diffusion.data.scenes.checker_classes import checker_spec
    from vega_diffusion.data.scenes.confusable import merged_nouns
    from vega_diffusion.data.scenes.subjects import load_subjects

    names = checker_spec()
    found: dict[str, list[bool]] = {"noun": [], "subject": [], "colour": []}
    boxes = [box for box in truth["boxes"].tolist() if box[2] > box[0]]
    for number, box in enumerate(boxes):
        seen = nearest(finding.detections, box)
        noun, colour = names.nouns[int(truth["nouns"][number])], int(truth["colours"][number])
        found["subject" if noun in load_subjects() else "noun"].append(
            seen is not None and seen.noun in merged_nouns(noun)
        )
        if colour > 0:  # "natural" is no colour that a prompt can ask for
            found["colour"].append(seen is not None and seen.colour == names.colours[colour])
    found["count"] = [len(finding.detections) == len(boxes)]
    style, background = int(truth["style"]), int(truth["background"])
    found["style"] = [finding.style == names.styles[style]] if style >= 0 else []
    found["background"] = [finding.background == names.backgrounds[background]] if background >= 0 else []
    return found


def nearest(detections: Sequence[Detection], box: Sequence[float]) -> Detection | None:
    """Return the detection whose centre is nearest to a box's, if it is within half of the box's longer side."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    reach = max(box[2] - box[0], box[3] - box[1]) / 2
    ranked = sorted((hypot(d.centre[0] - x, d.centre[1] - y), number) for number, d in enumerate(detections))
    return detections[ranked[0][1]] if ranked and ranked[0][0] <= reach else None
