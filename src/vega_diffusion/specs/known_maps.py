"""The layer maps known by name, and how a recipe or a command line names one.

Which of SDXL's blocks the published students kept was never published. SSD-1B's are an outside estimate by weight
similarity (10 -> 4 keeps 0, 1, 2, 6; 2 -> 1 keeps 0; furusu/SSD-1B-anime on the Hub); for Vega there is none, so the
map here is a choice: of the blocks estimated for SSD-1B, the first and the last. `vega map recover` tells for any
checkpoint at hand.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import UNetSpec
from vega_diffusion.specs.layer_map import Keep, LayerMap, keep_evenly, keep_first, match_layers, stretch
from vega_diffusion.specs.presets import KOALA_1B, KOALA_700M, SDXL, SSD_1B, VEGA

_SSD_SOURCE = "estimated by weight similarity (furusu/SSD-1B-anime): 10 -> 4 keeps 0, 1, 2, 6; 2 -> 1 keeps 0"
_VEGA_SOURCE = "not published; chosen: of the blocks estimated for SSD-1B the first and the last"
_KOALA_SOURCE = "not published; chosen: the first blocks"


def _kept(table: dict[tuple[int, int], Sequence[int]]) -> Keep:
    """Keep by (blocks of the teacher, blocks of the student); all blocks where there are as many."""
    return lambda layer, count, full: range(full) if count == full else table[full, count]


# Names of `vega map` and of recipes; all but ssd-1b-to-vega carve SDXL.
KNOWN_MAPS: dict[str, LayerMap] = {
    name: match_layers(student.unet, teacher.unet, keep, name, source)
    for name, student, teacher, keep, source in (
        ("ssd-1b", SSD_1B, SDXL, _kept({(10, 4): (0, 1, 2, 6), (2, 1): (0,)}), _SSD_SOURCE),
        ("vega", VEGA, SDXL, _kept({(10, 2): (0, 6), (2, 1): (0,)}), _VEGA_SOURCE),
        ("ssd-1b-to-vega", VEGA, SSD_1B, _kept({(4, 2): (0, 3), (10, 2): (0, 6), (2, 1): (0,)}), _VEGA_SOURCE),
        ("koala-1b", KOALA_1B, SDXL, keep_first, _KOALA_SOURCE),
        ("koala-700m", KOALA_700M, SDXL, keep_first, _KOALA_SOURCE),
    )
}

MAP_FILES = (".toml", ".json")
RULES = ("first", "even", "random[:SEED]", "stretch", "same")


def keep_randomly(seed: int) -> Keep:
    """Keep random blocks of every attention layer, in order; the choice depends on (seed, layer) alone."""

    def keep(layer: str, count: int, full: int) -> Sequence[int]:
        return sorted(random.Random(f"{seed} {layer}").sample(range(full), min(count, full)))

    return keep


def find_map(reference: str, student: UNetSpec, teacher: UNetSpec) -> LayerMap:
    """Return the map that a name, a rule or a file stands for, checked against student and teacher.

    Args:
        reference: A name of `KNOWN_MAPS`; a rule; or a TOML or JSON file. Of the rules, `first`, `even` and
            `random:SEED` give a student that is deeper than its teacher new blocks, `stretch` copies of the teacher's.
            `same` drops nothing, between networks of one shape. Maps joined by " + " are carved one after the other:
            `ssd-1b + ssd-1b-to-vega`; a rule beside other maps than `same` is none of them (`check_joined`).
        student: Its architecture.
        teacher: Its architecture.

    Raises:
        InvalidValue: There is no such map, or it does not fit.
        MissingFile: The file cannot be read.
    """
    check_joined(reference)
    parts = [part for part in _parts(reference) if part != "same"]
    if not parts:
        if student != teacher:
            raise InvalidValue("map", reference, "another map between networks of two shapes", "name it")
        return match_layers(student, teacher, keep_first, "same", "nothing is dropped")
    if len(parts) == 1:
        (reference,) = parts
    rule, _, seed = reference.partition(":")
    if rule == "random" and (seed or "0").isdigit():
        return match_layers(student, teacher, keep_randomly(int(seed or 0)), f"random:{seed or 0}", "drawn at random")
    if reference == "first":
        return match_layers(student, teacher, keep_first, "first", "by rule: the first blocks")
    if reference == "even":
        return match_layers(student, teacher, keep_evenly, "even", "by rule: blocks at equal distances")
    if reference == "stretch":
        return match_layers(student, teacher, stretch, "stretch", "by rule: every block stands for a run of blocks")
    first, *later = (read_map(part) for part in parts)
    for one in later:
        first = first.then(one)
    first.check(student, teacher)
    return first


def check_joined(reference: str) -> None:
    """Check that each of several maps that are carved one after the other says by itself what it keeps.

    A rule does not: what it keeps depends on the two networks beside it, and those in between are not known here.

    Raises:
        InvalidValue: One is neither a known map nor `same` nor a file.
    """
    parts = [part for part in _parts(reference) if part != "same"]
    for part in parts if len(parts) > 1 else ():
        if part not in KNOWN_MAPS and Path(part).suffix not in MAP_FILES:
            allowed = f"in {reference!r}, whose maps are joined: {', '.join(KNOWN_MAPS)}, same, a .toml or .json file"
            remedy = "choose one; vega map show RULE --student NAME --output FILE writes the map of a rule as a file"
            raise InvalidValue("map", part, allowed, remedy)


def _parts(reference: str) -> list[str]:
    return [part.strip() for part in reference.split(" + ")]


def read_map(reference: str) -> LayerMap:
    """Return a known map, or one from a TOML or JSON file; nothing is checked against networks.

    Raises:
        InvalidValue: There is no such map, or its content is not allowed.
        MissingFile: The file cannot be read.
    """
    if reference in KNOWN_MAPS:
        return KNOWN_MAPS[reference]
    path = Path(reference)
    if path.suffix == ".toml":
        return LayerMap.from_toml(path)
    if path.suffix == ".json":
        return LayerMap.from_json_file(path)
    known = ", ".join((*KNOWN_MAPS, *RULES))
    raise InvalidValue("map", reference, f"one of: {known}; or a .toml or .json file", "choose one of them")
