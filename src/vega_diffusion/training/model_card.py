"""The text of a model's README.md, generated from what is known: architecture, records of its components, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vega_diffusion.models.measure import count_parameters
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import ModelSpec

HEAD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [text-to-image, stable-diffusion-xl{tags}]
---

# {name}

{what}

```python
from diffusers import StableDiffusionXLPipeline

pipe = StableDiffusionXLPipeline.from_pretrained("path/to/{name}")
image = pipe("{prompt}", height={side}, width={side}).images[0]
```
"""

MINI = """A miniature of the SDXL family: the block topology of the full-size architecture at a tenth of its width, 128
px pictures, trained on captioned scenes composed from openly licensed emoji art. It draws the objects, colours,
counts, relations, backgrounds and drawing styles of those scenes. It is no photographic model and knows no other
subject.

Artwork behind the weights: Fluent Emoji (MIT, Microsoft), Noto Emoji (Apache-2.0, Google), Twemoji (CC-BY 4.0, Twitter,
Inc and other contributors, modified). See NOTICE in the project."""

FULL = "A text-to-image model of SDXL's kind: what loads SDXL in diffusers' layout loads it."

LICENCE = """
## Licence and limits

These weights are under Apache-2.0. The terms of {sources} and of the pictures named above may bind beside it.
A model of this size makes mistakes: it may miss, mix up or double what a prompt asks for, and it repeats the biases of
its data and teachers. It does not know facts or people and is not to be used as if it did.
"""


def model_card(
    name: str,
    spec: ModelSpec,
    records: Mapping[str, Mapping[str, Any]],
    notes: str = "",
    scores: Mapping[str, Any] | None = None,
) -> str:
    """Return the card.

    Args:
        name: What the model is called.
        spec: Its architecture.
        records: Component -> how it was made (`training/publish.py`).
        notes: Free text.
        scores: `result.json` of an evaluation.
    """
    with torch.device("meta"):
        parameters = count_parameters(build_unet(spec.unet))
    mini = spec.family == "mini"
    recipe = records["unet"].get("recipe", {})
    teachers = recipe.get("objective", {}).get("teachers", [])
    what = f"{MINI if mini else FULL}\n\nIts U-Net has {parameters:,} parameters."
    prompt = "a cat next to a slice of pizza" if mini else "a cute cat eating a slice of pizza"
    side = spec.unet.sample_size * spec.autoencoder.downscale
    head = HEAD.format(name=name, what=what, tags=", distilled" if teachers else "", prompt=prompt, side=side)
    parts = [head]
    if teachers:
        parts.append(_teachers(recipe))
    if recipe:
        parts += [_data(recipe["data"]), _settings(recipe)]
    parts.append(_components(records))
    if scores:
        parts.append(_scores(scores))
    if notes:
        parts.append(f"\n## Notes\n\n{notes}\n")
    sources = [teacher["name"] for teacher in teachers] or ["the weights that training started from"]
    parts.append(LICENCE.format(sources=", ".join(sources)))
    return "".join(parts)


def _teachers(recipe: Mapping[str, Any]) -> str:
    rows = []
    for one in recipe["objective"]["teachers"]:
        until = one.get("stop_step") or recipe["steps"]
        who = _named(one.get("weights") or one["base"])
        rows.append(f"| {one['name']} | {who} | {one['start_step']:,} to {until:,} | {one['map']} | {one['dtype']} |")
    surgery = recipe["model"].get("surgery")
    carved = (
        f"\nFirst weights: carved out of {_named(surgery['teacher'])} by the layer map `{surgery['map']}`.\n"
        if surgery
        else ""
    )
    head = "\n## Teachers\n\n| teacher | weights | steps | layer map | precision |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n" + carved


def _data(data: Mapping[str, Any]) -> str:
    if data["kind"] == "image_latents":
        place = next(data[key] for key in ("folder", "shards", "dataset") if data.get(key))
        filters = {key: value for key, value in (data.get("filters") or {}).items() if value}
        text = f"Captioned pictures: {_named(place)}, at {data['resolution_px']} px in aspect-ratio buckets"
        return f"\n## Data\n\n{text}; filters: {_listed(filters) or 'none'}.\n"
    number = f"{data['num_scenes']:,} " if "num_scenes" in data else ""
    kinds = (data.get("mix") or {}).get("kinds") or {}
    return f"\n## Data\n\n{number}captioned scenes (`{data['kind']}`, seed {data['seed']}); kinds: {_listed(kinds)}.\n"


def _settings(recipe: Mapping[str, Any]) -> str:
    optimizer, schedule, objective = recipe["optimizer"], recipe["lr_schedule"], recipe["objective"]
    losses = {key: value for key, value in objective.items() if key.endswith("_weight") or key == "min_snr_gamma"}
    if objective.get("feature_level"):
        losses["feature_level"] = f"{objective['feature_level']} ({objective['feature_scale']})"
    ema = recipe.get("ema")
    rows = {
        "optimizer steps": f"{recipe['steps']:,}",
        "batch size": recipe["batch_size"],
        "learning rate": f"{optimizer['lr']:g}, {schedule['kind']}, {schedule['warmup_steps']:,} steps of warm-up",
        "AdamW": f"betas {optimizer['betas'][0]:g} and {optimizer['betas'][1]:g}, decay {optimizer['weight_decay']:g}",
        "precision": recipe["mixed_precision"],
        "averages": f"decay {ema['decay']:g}" if ema else "none",
        "loss": f"{objective['kind']}: {_listed(losses)}",
    }
    lines = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"\n## Training of the U-Net\n\n| setting | value |\n|---|---|\n{lines}\n"


def _components(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for component, record in records.items():
        for stage in _stages(record):
            steps, samples = (f"{stage[key]:,}" if key in stage else "" for key in ("steps", "samples"))
            rows.append(f"| {component} | {stage.get('run') or stage.get('source', '')} | {steps} | {samples} |")
    head = "\n## Components\n\n| component | run or source | optimizer steps | samples |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _scores(scores: Mapping[str, Any]) -> str:
    """Return the table of one evaluation by the project's own ruler."""
    intervals, identity = scores["intervals"], scores["identity"]
    rows = [("overall", scores["overall"]), *scores["kinds"].items(), *scores["rows"].items()]
    lines = []
    for what, rate in rows:
        if rate is not None:
            low, high = intervals[what]
            lines.append(f"| {what} | {100 * rate:.1f} | {100 * low:.1f} to {100 * high:.1f} |")
    where = f"{identity['suite']}-{identity['split']}"
    text = f"Prompts of `{where}` that show what they ask for, by `vega evaluate`: {scores['num_images']:,} pictures."
    return f"\n## Scores\n\n{text}\n\n| | % | 95 % interval |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def _stages(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return a component's runs, first one first."""
    return [*(_stages(record["started_from"]) if "started_from" in record else ()), record]


def _named(reference: str) -> str:
    return f"`{reference}`"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
