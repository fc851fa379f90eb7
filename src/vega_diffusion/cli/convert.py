"""`vega convert`: LoRA files in other layouts, merged, extracted, made smaller; models as folders and single files."""

from __future__ import annotations

import json as jsonlib
import math
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from vega_diffusion.cli.arguments import BadArguments, run_verb, text
from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.lora import WeightedLora
from vega_diffusion.specs.presets import PRESETS

SUBCOMMANDS = {
    "lora": "a LoRA file in the layout of kohya or of diffusers",
    "merge": "a model folder with LoRAs merged into its weights",
    "extract": "a LoRA out of the difference of two models",
    "resize": "a LoRA of lower rank",
    "single-file": "a model folder as one file for ComfyUI, web interfaces, stable-diffusion.cpp",
    "folder": "a single-file checkpoint as a model folder",
}
_PLACES = "NAME|FOLDER|HUB-ID"


def run(argv: list[str]) -> int:
    """Run one subcommand.

    Returns:
        0 when it is done.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = ["usage: vega convert SUBCOMMAND [options]    (vega convert SUBCOMMAND --help lists its options)", ""]
        print("\n".join(lines + [f"  {name:<12} {text}" for name, text in SUBCOMMANDS.items()]))
        return 0 if argv else 2
    match argv[0]:
        case "lora":
            return run_verb("convert lora", lora, argv[1:])
        case "merge":
            return run_verb("convert merge", merge, argv[1:])
        case "extract":
            return run_verb("convert extract", extract, argv[1:])
        case "resize":
            return run_verb("convert resize", resize, argv[1:])
        case "single-file":
            return run_verb("convert single-file", single_file, argv[1:])
        case "folder":
            return run_verb("convert folder", folder, argv[1:])
        case other:
            raise InvalidValue("subcommand", other, ", ".join(SUBCOMMANDS), "see vega convert --help")


def lora(
    file: Annotated[str, tyro.conf.Positional, text("FILE")],
    output: Annotated[str, tyro.conf.Positional, text("OUT")],
    /,
    layout: Annotated[str, text("kohya|diffusers")],
    model: Annotated[str, text(_PLACES)],
    force: bool = False,
    json: bool = False,
) -> int:
    """Write a LoRA file in another layout: the same numbers under other names; reads no weights of the model.

    Args:
        file: A LoRA file of either layout, or a folder that holds pytorch_lora_weights.safetensors.
        output: The new file.
        layout: kohya has the names that sd-scripts writes for SDXL, diffusers those of PEFT.
        model: What the LoRA was trained on, for the names of its maps: a preset such as vega, a folder, a Hub id.
        force: Replace a file that is there.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.lora_file import read_lora, write_lora
    from vega_diffusion.models.lora_layouts import MapTree
    from vega_diffusion.models.lora_weights import convert_layout

    source, target = _places(file, output, force)
    wanted = _layout(layout)
    tree = MapTree.of_spec(_spec_of(model), Path(model).name)
    given = read_lora(source)
    converted = convert_layout(given, wanted, tree)
    write_lora(target, converted)
    if wanted == "kohya" and len({one.alpha for one in converted.adapters.values()}) > 1:
        print("warning: alphas differ from map to map, which diffusers misreads in kohya's layout", file=sys.stderr)
    report = {"file": str(target), "from": given.layout, "layout": layout, "adapters": len(converted.adapters)}
    _tell(report, f"{target}: {len(converted.adapters)} adapters, {given.layout} to {layout}", json)
    return 0


def merge(
    model: Annotated[str, tyro.conf.Positional, text(_PLACES)],
    rest: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE@WEIGHT [...] OUT")],
    /,
    precision: tuple[str, ...] = (),
    force: bool = False,
    json: bool = False,
) -> int:
    """Write a model folder with LoRAs merged into its weights; vega.json says which.

    Args:
        model: A known model, a model folder or a Hub id.
        rest: LoRA files with their weights (1 unless given), and last the new folder.
        precision: Weight files: fp32, fp16 or both; without it that of the model.
        force: Replace a folder that is there.
        json: Print one JSON object as the last line.
    """
    if len(rest) < 2:
        raise BadArguments("arguments: a LoRA file and OUT are needed; see vega convert merge --help")
    from vega_diffusion.models.find import resolve_model
    from vega_diffusion.models.lora_file import lora_path
    from vega_diffusion.models.lora_merge import WeightedFile, merge_model

    uses = [WeightedLora.parse(use, "FILE@WEIGHT") for use in rest[:-1]]
    files = [WeightedFile(lora_path(use.file, "FILE"), use.weight) for use in uses]
    place = Path(rest[-1]).expanduser()
    spec, maps = merge_model(resolve_model(model), model, files, place, _precisions(precision), force)
    report: dict[str, Any] = {"folder": str(place), "name": spec.name, "model": model, "maps": maps}
    report["loras"] = [{"file": str(one.path), "weight": one.weight} for one in files]
    _tell(report, f"{place}: {model} with {len(files)} LoRA(s) merged into {maps} maps", json)
    return 0


def extract(
    base: Annotated[str, tyro.conf.Positional, text("BASE")],
    tuned: Annotated[str, tyro.conf.Positional, text("TUNED")],
    output: Annotated[str, tyro.conf.Positional, text("OUT")],
    /,
    rank: Annotated[int, tyro.conf.arg(metavar="N")],
    layout: Annotated[str, text("kohya|diffusers", "diffusers")] = "diffusers",
    force: bool = False,
    json: bool = False,
) -> int:
    """Write the LoRA that turns one model into another as well as its rank allows, by singular values.

    Energy is the sum of squared singular values; what is kept of it is told for every map and over all.

    Args:
        base: A known model, a model folder or a Hub id.
        tuned: One of the same shape.
        output: The LoRA file.
        rank: Of every map's adapter, at most.
        layout: Of the file.
        force: Replace a file that is there.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.find import resolve_model
    from vega_diffusion.models.lora_file import write_lora
    from vega_diffusion.models.lora_merge import check_output, extract_lora
    from vega_diffusion.models.lora_weights import arrange

    if rank < 1:
        raise InvalidValue("--rank", rank, "1 or more", "raise it")
    target = Path(output).expanduser()
    wanted = _layout(layout)
    folders = resolve_model(base), resolve_model(tuned)
    check_output(target, folders, force)
    found, tree = extract_lora(*folders, rank)
    written = arrange(found.weights, wanted, tree)
    write_lora(target, written)
    if found.left_out:
        first = ", ".join(found.left_out[:3])
        line = f"warning: {len(found.left_out)} tensors differ that no LoRA can hold (norms, biases): {first}"
        print(line, file=sys.stderr)
    shares = {name: round(share, 6) for name, (share, _) in found.kept.items()}
    report = {"file": str(target), "adapters": len(shares), "rank": rank, "energy": round(found.share, 6)}
    report |= {"maps": shares, "left_out": list(found.left_out)}
    if not json:
        print("\n".join(f"{share:>8.2%}  {name}" for name, share in shares.items()))
    _tell(report, f"{target}: {len(shares)} adapters of rank {rank} keep {found.share:.2%} of the energy", json)
    return 0


def resize(
    file: Annotated[str, tyro.conf.Positional, text("FILE")],
    output: Annotated[str, tyro.conf.Positional, text("OUT")],
    /,
    rank: Annotated[str | None, text("N", "none")] = None,
    energy: Annotated[str | None, text("SHARE", "none")] = None,
    force: bool = False,
    json: bool = False,
) -> int:
    """Write a LoRA of lower rank: the best one of its rank for every map, exactly, in the file's own layout.

    Args:
        file: A LoRA file of either layout.
        output: The new file.
        rank: Of every adapter, at most; smaller ones stay as they are.
        energy: Instead of a rank the share of squared singular values that every adapter keeps, as in 0.95.
        force: Replace a file that is there.
        json: Print one JSON object as the last line.
    """
    from dataclasses import replace

    from vega_diffusion.models.lora_algebra import resize as resize_adapter
    from vega_diffusion.models.lora_file import read_lora, write_lora

    if (rank is None) == (energy is None):
        raise BadArguments("arguments: --rank or --energy is needed, one of them; see vega convert resize --help")
    wanted = None if rank is None else _number("--rank", rank, int, 1, 2**20)
    share = None if energy is None else _number("--energy", energy, float, math.ulp(0.0), 1.0)
    source, target = _places(file, output, force)
    given = read_lora(source)
    smaller = {name: resize_adapter(one, wanted, share) for name, one in given.adapters.items()}
    write_lora(target, replace(given, adapters={name: one.adapter for name, one in smaller.items()}))
    total = sum(one.energy for one in smaller.values())
    kept = sum(one.kept for one in smaller.values()) / total if total else 1.0
    ranks = {name: [given.adapters[name].rank, one.adapter.rank] for name, one in smaller.items()}
    most = [max(pair[side] for pair in ranks.values()) for side in (0, 1)]
    report = {"file": str(target), "adapters": len(ranks), "energy": round(kept, 6), "ranks": ranks}
    _tell(report, f"{target}: rank {most[0]} to {most[1]}, {kept:.2%} of the energy in {len(ranks)} adapters", json)
    return 0


def single_file(
    model: Annotated[str, tyro.conf.Positional, text(_PLACES)],
    output: Annotated[str, tyro.conf.Positional, text("OUT")],
    /,
    precision: Annotated[str | None, text("fp32|fp16", "that of the model")] = None,
    force: bool = False,
    json: bool = False,
) -> int:
    """Write a model folder as one file under the names of SDXL's first implementation, which other programs load.

    Args:
        model: A known model, a model folder or a Hub id.
        output: The new file, as in vega.safetensors.
        precision: Of the numbers.
        force: Replace a file that is there.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.find import resolve_model
    from vega_diffusion.models.layout import VAE_TINY
    from vega_diffusion.models.lora_merge import check_output
    from vega_diffusion.models.single_file_model import write_single_file

    wanted = _precisions(() if precision is None else (precision,))
    target, source = Path(output).expanduser(), resolve_model(model)
    if target.is_dir():
        raise InvalidValue("OUT", output, "a file", "name the file, as in vega.safetensors")
    check_output(target, [source], force)
    if (source / VAE_TINY).is_dir():
        print(f"warning: {VAE_TINY} is left out: single files hold no tiny autoencoder", file=sys.stderr)
    spec, count = write_single_file(source, target, wanted[0] if wanted else None)
    report = {"file": str(target), "name": spec.name, "tensors": count, "bytes": target.stat().st_size}
    _tell(report, f"{target}: {spec.name} in {count:,} tensors, {report['bytes']:,} bytes", json)
    return 0


def folder(
    file: Annotated[str, tyro.conf.Positional, text("FILE")],
    output: Annotated[str, tyro.conf.Positional, text("OUT")],
    /,
    tokenizers: Annotated[str, text(_PLACES)],
    precision: Annotated[str | None, text("fp32|fp16", "that of the file")] = None,
    force: bool = False,
    json: bool = False,
) -> int:
    """Write a single-file checkpoint of an SDXL-shaped model as a model folder, which everything here reads.

    Args:
        file: A safetensors file as web interfaces have them.
        output: The new folder.
        tokenizers: A model whose tokenizers it uses, since such files hold none.
        precision: Of the weight files.
        force: Replace a model folder that is there.
        json: Print one JSON object as the last line.
    """
    from vega_diffusion.models.export import check_replaceable
    from vega_diffusion.models.find import resolve_model
    from vega_diffusion.models.lora_merge import check_output
    from vega_diffusion.models.single_file_model import write_model_folder

    wanted = _precisions(() if precision is None else (precision,))
    source, target, words = Path(file).expanduser(), Path(output).expanduser(), resolve_model(tokenizers)
    check_output(target, [source, words], force)
    check_replaceable(target, "OUT")
    spec, left = write_model_folder(source, target, words, wanted[0] if wanted else None)
    if left:
        print(f"warning: {len(left)} tensors are no weights of {spec.name}, left out: {left[0]} ...", file=sys.stderr)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    report: dict[str, Any] = {
        "folder": str(target),
        "name": spec.name,
        "family": spec.family,
        "bytes": size,
        "left_out": left,
    }
    _tell(report, f"{target}: {size:,} bytes, of the family {spec.family}", json)
    return 0


def _places(file: str, output: str, force: bool) -> tuple[Path, Path]:
    """Return what is read and where to write."""
    from vega_diffusion.models.lora_file import lora_path
    from vega_diffusion.models.lora_merge import check_output

    source, target = lora_path(file, "FILE"), Path(output).expanduser()
    check_output(target, [source], force)
    return source, target


def _layout(name: str) -> Any:
    from vega_diffusion.models.lora_layouts import Layout

    if name not in get_args(Layout):
        raise InvalidValue("--layout", name, " or ".join(get_args(Layout)), "choose one")
    return name


def _precisions(given: tuple[str, ...]) -> Any:
    """Return kinds of weight files as they were asked for; None when nothing was."""
    if not set(given) <= {"fp32", "fp16"}:
        raise InvalidValue("--precision", " ".join(given), "fp32, fp16 or both", "choose")
    return given or None


def _number(field: str, written: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    try:
        value = kind(written)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        allowed = "a whole number, 1 or more" if kind is int else "a share above 0, at most 1"
        raise InvalidValue(field, written, allowed, "change the value")
    return value


def _spec_of(name: str) -> ModelSpec:
    """Return the architecture of a preset, a folder or a Hub id, from configs alone."""
    if name in PRESETS:
        return PRESETS[name]
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.models.find import find_folder

    return load_spec(find_folder(name, configs_only=True))


def _tell(report: dict[str, Any], line: str, json: bool) -> None:
    print(jsonlib.dumps(report) if json else line)
