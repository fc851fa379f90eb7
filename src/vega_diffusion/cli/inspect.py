"""`vega inspect`: sizes, work and layout of a model, beside the model it is compared with. Reads no weights."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vega_diffusion.cli.arguments import run_verb, text
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import MINI_SDXL, PRESETS, SDXL

if TYPE_CHECKING:
    from vega_diffusion.models.measure import BlockSize, ModelSize


def run(argv: list[str]) -> int:
    """Parse the arguments and inspect.

    Returns:
        0 when everything asked for is printed or drawn.
    """
    return run_verb("inspect", inspect, argv)


def inspect(
    model: Annotated[str, tyro.conf.Positional, text("NAME|FOLDER|HUB-ID")],
    /,
    json: bool = False,
    figure: Annotated[str | None, text("FILE", "none")] = None,
) -> int:
    """Print a model's parameters, blocks and work; loads no weights.

    Args:
        model: A preset such as vega or sdxl, a model folder, or a Hub id.
        json: Print one JSON object as the last line instead of the table.
        figure: Draw the block diagram into this PNG, SVG or PDF file.
    """
    if figure is not None:
        from vega_diffusion.models.figure import check_figure_path

        check_figure_path(Path(figure))
    spec, source = _find_spec(model)
    reference = reference_of(spec)

    from vega_diffusion.models.measure import measure_model

    size = measure_model(spec)
    if not json:
        print("\n".join(table(spec, size, reference, size if reference == spec else measure_model(reference))))
    if figure is not None:
        from vega_diffusion.models.figure import draw_figure

        draw_figure(spec, reference, Path(figure))
        if not json:
            print(f"figure: {figure}")
    if json:
        print(jsonlib.dumps(report(spec, source, size, figure)))
    return 0


def _find_spec(model: str) -> tuple[ModelSpec, str]:
    """Return the spec and where it comes from: "preset" or a folder."""
    if model in PRESETS:
        return PRESETS[model], "preset"
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.models.find import find_folder

    folder = find_folder(model, configs_only=True)
    return load_spec(folder), str(folder)


def reference_of(spec: ModelSpec) -> ModelSpec:
    """Return what a model is compared with: SDXL, or mini-sdxl for the mini family."""
    return MINI_SDXL if spec.family == "mini" else SDXL


def report(spec: ModelSpec, source: str, size: ModelSize, figure: str | None) -> dict[str, Any]:
    """Return what `--json` prints: sizes, `blocks` (parameters by block), and the spec."""
    result: dict[str, Any] = {"model": spec.name, "family": spec.family, "source": source}
    result |= {key: value for key, value in size.to_dict().items() if key != "blocks"}
    result |= {key: round(result[key], 3) for key in ("gmacs_512", "gmacs_1024", "gmacs_default")}
    result["blocks"] = {block.name: block.parameters for block in size.blocks}
    result["layers"] = {
        block.name: {"kind": block.kind, "resnets": block.resnets, "transformer_blocks": list(block.transformer_depths)}
        for block in size.blocks
    }
    result["generation"] = spec.generation.model_dump(mode="json")
    result["spec"] = spec.model_dump(mode="json")
    if figure is not None:
        result["figure"] = figure
    return result


def table(spec: ModelSpec, size: ModelSize, reference: ModelSpec, full: ModelSize) -> list[str]:
    """Return the lines of the readable table: totals, then the U-Net block by block."""
    lines = [_line("", spec.name, reference.name, f"of {reference.name}")]
    defaults = spec.generation
    rows = [
        ("U-Net parameters", "unet_parameters"),
        ("transformer blocks", "transformer_blocks"),
        ("ResNet blocks", "resnets"),
        ("GMACs at 512 px", "gmacs_512"),
        ("GMACs at 1024 px", "gmacs_1024"),
        ("text encoder 1 parameters", "text_encoder_parameters"),
        ("text encoder 2 parameters", "text_encoder_2_parameters"),
        ("autoencoder parameters", "vae_parameters"),
        ("all parameters", "total_parameters"),
    ]
    if spec.family == "mini":
        rows.insert(3, (f"GMACs at {defaults.width} px", "gmacs_default"))
    for label, field in rows:
        own, other = getattr(size, field), getattr(full, field)
        lines.append(_line(label, _number(own), _number(other), _share(own, other)))
    lines += ["", _line("U-Net block", "parameters", reference.name, "share", "transformer blocks")]
    theirs = {block.name: block for block in full.blocks}
    mine = {block.name: block for block in size.blocks}
    for name in dict.fromkeys((*mine, *theirs)):
        own, other = mine.get(name), theirs.get(name)
        own_count, other_count = (block.parameters if block else None for block in (own, other))
        depths = f"{_depths(own)}  (of {_depths(other)})" if _depths(own) != _depths(other) else _depths(own)
        lines.append(_line(name, _number(own_count), _number(other_count), _share(own_count, other_count), depths))
    negative = "none" if defaults.negative_prompt is None else repr(defaults.negative_prompt)
    lines += [
        "",
        f"generation defaults: {defaults.width}x{defaults.height} px, {defaults.num_steps} steps of "
        f"{defaults.sampler}, guidance {defaults.guidance_scale:g}, negative prompt {negative}",
        "GMACs: 1e9 multiply-accumulates of one U-Net forward for one picture, without guidance",
    ]
    return lines


def _line(label: str, own: str, other: str, share: str, note: str = "") -> str:
    return f"{label:<26}{own:>15}{other:>15}{share:>14}  {note}".rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if value >= 1 else f"{value:,.3f}"


def _share(own: float | None, other: float | None) -> str:
    return f"{own / other:.1%}" if own is not None and other else "-"


def _depths(block: BlockSize | None) -> str:
    return "+".join(str(depth) for depth in block.transformer_depths) if block and block.transformer_depths else "-"
