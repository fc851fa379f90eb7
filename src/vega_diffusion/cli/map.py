"""`vega map`: which teacher block a student's block comes from: show a map, carve by it, tell it from weights."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.known_maps import KNOWN_MAPS, RULES, find_map, read_map
from vega_diffusion.specs.layer_map import LayerMap, block_table
from vega_diffusion.specs.presets import PRESETS

if TYPE_CHECKING:
    from vega_diffusion.models.recover import Recovery

SUBCOMMANDS = {
    "list": "the maps known by name",
    "show": "what a map keeps of a teacher, and the student's size",
    "carve": "write the untrained student that a map cuts out of a teacher",
    "recover": "tell the map of a student from its weights and its teacher's",
    "propose": "score a teacher's blocks, choose what to keep under a budget, try how it recovers",
}
MapName = Annotated[str, text("NAME|RULE|FILE")]


def run(argv: list[str]) -> int:
    """Run one subcommand.

    Returns:
        0 when it is done.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = ["usage: vega map SUBCOMMAND [options]    (vega map SUBCOMMAND --help lists its options)", ""]
        print("\n".join(lines + [f"  {name:<8} {text}" for name, text in SUBCOMMANDS.items()]))
        return 0 if argv else 2
    match argv[0]:
        case "list":
            return run_verb("map list", list_maps, argv[1:])
        case "show":
            return run_verb("map show", show, argv[1:])
        case "carve":
            return run_verb("map carve", carve, argv[1:])
        case "recover":
            return run_verb("map recover", recover, argv[1:])
        case "propose":
            return run_verb("map propose", propose, argv[1:])
        case other:
            raise InvalidValue("subcommand", other, ", ".join(SUBCOMMANDS), "see vega map --help")


def list_maps(json: bool = False) -> int:
    """List the maps known by name, with their sources, and the rules that make one for any pair.

    Args:
        json: Print one JSON object instead.
    """
    if json:
        print(jsonlib.dumps({name: layers.model_dump(mode="json") for name, layers in KNOWN_MAPS.items()}))
        return 0
    for name, layers in KNOWN_MAPS.items():
        print(f"{name:<16}{len(layers.blocks)} blocks; {layers.source}")
    print(f"rules for any pair of student and teacher: {', '.join(RULES)}")
    return 0


def show(
    map: Annotated[str, tyro.conf.Positional, text("NAME|RULE|FILE")],
    /,
    teacher: Annotated[str | None, text("NAME|FOLDER|HUB-ID", "sdxl, or what the map is for")] = None,
    student: Annotated[str | None, text("NAME|FOLDER|HUB-ID", "what the map makes of the teacher")] = None,
    output: Annotated[str | None, text("FILE", "none")] = None,
    json: bool = False,
) -> int:
    """Print what a map keeps and drops, checked against a teacher; reads no weights.

    Args:
        map: A known map (vega map list), a rule (first, even, random:SEED), or a TOML or JSON file.
        teacher: Whose blocks are kept.
        student: The architecture that a rule is to fill; a map says by itself what its student is.
        output: Write the map into this .toml or .json file.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.measure import measure_blocks
    from vega_diffusion.models.surgery import plan_surgery

    given = teacher or ("ssd-1b" if map == "ssd-1b-to-vega" else "sdxl")
    whole = _spec_of(given)
    layers = _find(map, whole, student)
    spec = layers.student_spec(whole.unet)
    surgery = plan_surgery(layers, spec, whole.unet)
    own, full = (sum(block.parameters for block in measure_blocks(unet)) for unet in (spec, whole.unet))
    if output is not None:
        _write_map(layers, Path(output))
    if json:
        report = {"map": layers.model_dump(mode="json"), "teacher": given, "tensors": surgery.counts()}
        report |= {"unet_parameters": own, "teacher_unet_parameters": full, "unet": spec.model_dump(mode="json")}
        print(jsonlib.dumps(report))
        return 0
    print("\n".join(_table(layers, whole)))
    print(f"student: {own:,} U-Net parameters, {own / full:.1%} of {full:,}; tensors: {surgery}")
    if output is not None:
        print(f"map: {output}")
    return 0


def carve(
    teacher: Annotated[str, tyro.conf.Positional, text("NAME|FOLDER|HUB-ID")],
    output: Annotated[str, tyro.conf.Positional, text("FOLDER")],
    /,
    map: MapName = "vega",
    student: Annotated[str | None, text("NAME|FOLDER|HUB-ID", "what the map makes of the teacher")] = None,
    seed: Annotated[int, tyro.conf.arg(metavar="INT")] = 0,
    json: bool = False,
) -> int:
    """Write the student that a map cuts out of a teacher, as a whole model folder; it is not trained yet.

    Args:
        teacher: A known model, a model folder or a Hub id.
        output: The student's folder; one that is there already is replaced.
        map: A known map (vega map list), a rule (first, even, random:SEED), or a TOML or JSON file.
        student: The architecture that a rule is to fill; a map says by itself what its student is.
        seed: Decides the fresh weights of blocks that the teacher does not have.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.carve import carve_model
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.models.find import resolve_model

    folder = resolve_model(teacher)
    layers = _find(map, load_spec(folder), student)
    spec, surgery = carve_model(folder, layers, Path(output), teacher, seed)
    if json:
        print(jsonlib.dumps({"folder": output, "map": layers.name, "student": spec.name, "tensors": surgery.counts()}))
    else:
        print(f"{output}: {spec.name}, carved from {teacher} by {layers.name}; tensors: {surgery}; untrained")
    return 0


def recover(
    student: Annotated[str, tyro.conf.Positional, text("NAME|FOLDER|HUB-ID")],
    teacher: Annotated[str, tyro.conf.Positional, text("NAME|FOLDER|HUB-ID")],
    /,
    output: Annotated[str | None, text("FILE", "none")] = None,
    json: bool = False,
) -> int:
    """Tell which teacher block every block of a student came from, by the similarity of their weights.

    Args:
        student: A known model, a model folder or a Hub id.
        teacher: Likewise, with the same widths.
        output: Write the map into this .toml or .json file.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.checkpoint import load_unet
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.models.find import resolve_model
    from vega_diffusion.models.recover import recover_map

    folders = [resolve_model(name) for name in (student, teacher)]
    small, large = (load_spec(folder).unet for folder in folders)
    weights = [load_unet(folder, spec).state_dict() for folder, spec in zip(folders, (small, large), strict=True)]
    found = recover_map(small, weights[0], large, weights[1])
    if output is not None:
        _write_map(found.layers, Path(output))
    if json:
        lines = [
            {"student": one.student, "teacher": one.teacher, "similarity": round(one.similarity, 4)}
            | {"runner_up": one.runner_up, "runner_up_similarity": round(one.runner_up_similarity, 4)}
            for one in found.matches
        ]
        least = round(found.least_confident.confidence, 4)
        print(jsonlib.dumps({"map": found.layers.model_dump(mode="json"), "matches": lines, "least_confidence": least}))
        return 0
    print("\n".join(_similarities(found)))
    if output is not None:
        print(f"map: {output}")
    return 0


def propose(
    teacher: Annotated[str, tyro.conf.Positional, text("NAME|FOLDER|HUB-ID")],
    /,
    budget: Annotated[str, text("parameters=N|macs=N|latency=N|shape=MODEL")],
    recipe: Annotated[str, text("FILE")],
    output: Annotated[str, text("FOLDER")],
    candidates: Annotated[int, tyro.conf.arg(metavar="N")] = 4,
    trial_steps: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    samples: Annotated[int, tyro.conf.arg(metavar="N")] = 64,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE"), tyro.conf.UseAppendAction] = (),
    json: bool = False,
) -> int:
    """Propose layer maps under a budget; the best by scores and by rules are carved, and trained for a few steps.

    An interrupted call goes on where it stood. The folder gets proposal.json, proposal.png, maps/ and the students.

    Args:
        teacher: A known model, a model folder or a Hub id.
        budget: What the student may have, as a share of the teacher's (parameters=0.3, latency=0.5) or a number; or
            whose shape it has (shape=vega-mini).
        recipe: A distillation, for the data, the losses and the optimizer.
        output: The folder of the result.
        candidates: How many maps by scores; first, even and random ones of the best one's shape come on top.
        trial_steps: Optimizer steps of each recovery trial; 0 ranks by the loss of the carved students. With
            --set model.lora.rank=16 (and model.surgery=none) trials train adapters alone.
        samples: Calibration samples, and as many held-out ones.
        set: Change the recipe for the trials, as in batch_size=32.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.find import resolve_model
    from vega_diffusion.specs.recipe import TrainRecipe
    from vega_diffusion.training.loop import print_to_stderr
    from vega_diffusion.training.proposal_figure import draw_proposal
    from vega_diffusion.training.propose import Budget
    from vega_diffusion.training.propose import propose as propose_maps

    for name, value, least in (
        ("--candidates", candidates, 1),
        ("--trial-steps", trial_steps, 0),
        ("--samples", samples, 1),
    ):
        if value < least:
            raise InvalidValue(name, value, f"{least} or more", "raise it")
    wanted, read = Budget.parse(budget), TrainRecipe.read(Path(recipe), set)
    found = propose_maps(
        resolve_model(teacher),
        read,
        wanted,
        Path(output),
        num_candidates=candidates,
        trial_steps=trial_steps,
        num_samples=samples,
        say=print_to_stderr,
    )
    draw_proposal(found, Path(output) / "proposal.png")
    if json:
        print(jsonlib.dumps(found.to_dict()))
        return 0
    print(f"{'map':<14}{'parameters':>14}{'prior':>10}{'carved':>10}{'recovered':>11}")
    for one in found.candidates:
        after = "-" if one.recovered_loss is None else f"{one.recovered_loss:.5f}"
        print(f"{one.name:<14}{one.unet_parameters:>14,}{one.prior:>10.4f}{one.carved_loss:>10.5f}{after:>11}")
    print(f"teacher {found.teacher_loss:.5f}; best {found.candidates[0].name}: {output}/{found.candidates[0].file}")
    return 0


def _spec_of(name: str) -> ModelSpec:
    """Return the architecture of a preset, a folder or a Hub id, from configs alone."""
    if name in PRESETS:
        return PRESETS[name]
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.models.find import find_folder

    return load_spec(find_folder(name, configs_only=True))


def _find(reference: str, teacher: ModelSpec, student: str | None) -> LayerMap:
    """Return a map; a rule needs to know what student it is for."""
    is_rule = reference.partition(":")[0] in ("first", "even", "random", "stretch")
    if student is not None:
        return find_map(reference, _spec_of(student).unet, teacher.unet)
    if is_rule:
        raise InvalidValue("map", reference, "a rule beside --student", "say what to make, as in --student vega")
    return read_map(reference)


def _write_map(layers: LayerMap, path: Path) -> None:
    if path.suffix not in (".toml", ".json"):
        raise InvalidValue("--output", str(path), "a file that ends in .toml or .json", "rename it")
    try:
        path.write_text(layers.to_toml() if path.suffix == ".toml" else layers.to_json(indent=1) + "\n")
    except OSError as error:
        raise VegaError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _table(layers: LayerMap, teacher: ModelSpec) -> list[str]:
    """Return what is kept, attention layer by attention layer, and what else was dropped, moved or is new."""
    lines = [f"map {layers.name}: {layers.source}", f"{'attention layer of the student':<32}transformer blocks kept"]
    theirs = block_table(teacher.unet)
    for block, origin in layers.blocks.items():
        if block.rpartition(".")[0].endswith(".attentions"):
            depth = sum(name.startswith(f"{origin}.transformer_blocks.") for name in theirs)
            moved = "" if origin == block else f"  ({origin})"
            lines.append(f"{block:<32}{', '.join(str(index) for index in layers.kept(block))} of {depth}{moved}")
    kept = set(layers.blocks.values())
    dropped = [name for name in theirs if name not in kept and ".transformer_blocks." not in name]
    resnets = {block: origin for block, origin in layers.blocks.items() if ".resnets." in block and block != origin}
    lines += [f"moved: {block} is the teacher's {origin}" for block, origin in resnets.items()]
    lines += [f"dropped: {', '.join(dropped)}"] if dropped else []
    return lines + [f"new: {name}" for name in _grouped(layers.new)]


def _grouped(blocks: tuple[str, ...]) -> list[str]:
    """Return block names, runs of one layer's transformer blocks as one: `...transformer_blocks.2 to 9`."""
    groups: dict[str, list[str]] = {}
    for block in blocks:
        home, _, number = block.rpartition(".")
        groups.setdefault(home if home.endswith("transformer_blocks") else block, []).append(number)
    return [
        home
        if not home.endswith("transformer_blocks")
        else f"{home}.{numbers[0]}" + (f" to {numbers[-1]}" if numbers[1:] else "")
        for home, numbers in groups.items()
    ]


def _similarities(found: Recovery) -> list[str]:
    lines = [f"{'student':<52}{'teacher':<52}{'cosine':>8}  next best"]
    for one in found.matches:
        second = f"{one.runner_up_similarity:.3f}  {one.runner_up}" if one.runner_up else "-"
        lines.append(f"{one.student:<52}{one.teacher or 'new':<52}{one.similarity:>8.3f}  {second}")
    least = found.least_confident
    lines.append(f"least sure: {least.student}, {least.confidence:.3f} nearer than the next best")
    return lines
