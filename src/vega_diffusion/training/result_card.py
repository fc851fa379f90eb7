"""The README.md of what a script trained: licence, settings, data, pictures. For exported models: `model_card`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vega_diffusion.models.find import is_hub_id
from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, Script
from vega_diffusion.specs.lora import LORA_FILE
from vega_diffusion.specs.recipe import TrainRecipe

LIBRARIES = ("vega-diffusion", "torch", "diffusers", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class ResultFacts:
    """What a card says.

    Args:
        name: What the result is called.
        script: What trained it.
        base: The model it started from, as the user called it.
        licence: Of that model, None where it is not known.
        recipe: The run.
        steps: Optimizer steps done.
        seconds: Of training.
        num_pictures: Pictures trained on.
        data_hash: Identity of the samples: pictures, captions, sizes, autoencoder and tokenizers.
        last_loss: Mean training loss at the end, None where none was logged.
        pictures: Files of previews.
        kohya: Name of the file in kohya's layout, if there is one.
    """

    name: str
    script: Script
    base: str
    licence: str | None
    recipe: TrainRecipe
    steps: int
    seconds: float
    num_pictures: int
    data_hash: str
    last_loss: float | None
    pictures: tuple[str, ...]
    kohya: str | None


def result_card(facts: ResultFacts) -> str:
    """Return the card."""
    parts = [_head(facts), f"\n# {facts.name}\n\n{_what(facts)}\n", _previews(facts), _use(facts), _training(facts)]
    return "".join([*parts, _data(facts), _licence(facts), _recipe(facts)])


def _head(facts: ResultFacts) -> str:
    subject = facts.script == DREAMBOOTH
    tags = ["text-to-image", "stable-diffusion-xl", "diffusers-training"]
    tags += ["lora"] if facts.recipe.model.lora else []
    tags += ["dreambooth"] if subject else []
    own = re.fullmatch(r"other \((.+)\)", facts.licence or "")
    lines = ["license: other", f"license_name: {own[1]}"] if own else [f"license: {facts.licence}"]
    lines = lines if facts.licence else []
    if is_hub_id(facts.base) and not Path(facts.base).exists():
        lines.append(f"base_model: {facts.base}")
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image", f"tags: [{', '.join(tags)}]"]
    caption = getattr(facts.recipe.data, "caption", None)
    if subject and caption:
        lines.append(f"instance_prompt: {json.dumps(caption, ensure_ascii=False)}")
    return "---\n" + "\n".join(lines) + "\n---\n"


def _what(facts: ResultFacts) -> str:
    lora, vae = facts.recipe.model.lora, facts.recipe.model.weights.get("vae", facts.base)
    base = f"`{_named(facts.base)}`"
    latents = "" if vae == facts.base else f" Latents are those of the autoencoder `{_named(vae)}`."
    if lora is None:
        return f"A whole model: the U-Net of {base}, trained on {facts.num_pictures:,} pictures.{latents}"
    kind = "DoRA" if lora.dora else "LoRA"
    where = ", ".join(facts.recipe.model.train)
    return f"A {kind} of rank {lora.rank} for {base} ({where}), trained on {facts.num_pictures:,} pictures.{latents}"


def _previews(facts: ResultFacts) -> str:
    if not facts.pictures:
        return ""
    prompt = facts.recipe.samples.prompts[0]
    shown = " ".join(f"![{name}]({name})" for name in facts.pictures)
    seed = facts.recipe.samples.seed
    return f'\n"{prompt}", seeds from {seed} on, by the model\'s own settings:\n\n{shown}\n'


def _use(facts: ResultFacts) -> str:
    side = facts.recipe.data.resolution_px  # type: ignore[union-attr]
    asked = facts.recipe.samples.prompts or (getattr(facts.recipe.data, "caption", None) or "...",)
    model = facts.name if facts.recipe.model.lora is None else facts.base
    load = "" if facts.recipe.model.lora is None else f'pipe.load_lora_weights("path/to/{facts.name}")\n'
    note = f"\n`{facts.kohya}` holds the same adapters in kohya's layout.\n" if facts.kohya else ""
    return (
        "\n## Use\n\n```python\nfrom diffusers import StableDiffusionXLPipeline\n\n"
        f'pipe = StableDiffusionXLPipeline.from_pretrained("{_place(model, facts)}")\n{load}'
        f"image = pipe({json.dumps(asked[0], ensure_ascii=False)}, height={side}, width={side}).images[0]\n```\n{note}"
        + (f"\nOr `vega generate --lora {LORA_FILE}@1`.\n" if load else "")
    )


def _training(facts: ResultFacts) -> str:
    recipe = facts.recipe
    optimizer, schedule, lora = recipe.optimizer, recipe.lr_schedule, recipe.model.lora
    settings = {
        key: value
        for key, value in optimizer.model_dump(mode="json").items()
        if key not in ("kind", "lr") and value not in (None, {}, False)
    }
    objective = recipe.objective.model_dump(mode="json", exclude_defaults=False)
    rows: dict[str, Any] = {
        "script": f"`{facts.script}.py` of vega-diffusion",
        "optimizer steps": f"{facts.steps:,}",
        "samples of a step": f"{recipe.batch_size} ({recipe.micro_batch_size} at once)",
        "learning rate": f"{optimizer.lr:g}, {schedule.kind}, {schedule.warmup_steps:,} steps of warm-up",
        "optimizer": f"{optimizer.kind}: {_listed(settings)}",
        "loss": _listed({key: value for key, value in objective.items() if value is not None}),
        "longest gradient": "any" if recipe.max_grad_norm is None else f"{recipe.max_grad_norm:g}",
        "adapters": f"rank {lora.rank}, alpha {lora.alpha or lora.rank:g}, dropout {lora.dropout:g}"
        if lora
        else "none",
        "averages": f"decay {recipe.ema.decay:g}" if recipe.ema else "none",
        "precision": "fp32" if recipe.mixed_precision == "no" else recipe.mixed_precision,
        "seed": recipe.seed,
        "time": f"{facts.seconds:,.0f} s",
        "loss at the end": "not logged" if facts.last_loss is None else f"{facts.last_loss:.4f}",
        "software": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"\n## Training\n\n| setting | value |\n|---|---|\n{table}\n"


def _data(facts: ResultFacts) -> str:
    data = facts.recipe.data.model_dump(mode="json")
    place = _named(data.get("dataset") or data.get("folder") or data.get("shards") or "")
    lines = [f"{facts.num_pictures:,} pictures of `{place}`, cut to squares of {data['resolution_px']} px."]
    if data.get("caption"):
        lines.append(f'All of them are called "{data["caption"]}".')
    lines += [
        f'Beside them {prior["num_pictures"]:,} pictures of "{prior["caption"]}", weight {prior["weight"]:g}.'
        for prior in data.get("prior") or ()
    ]
    lines.append(f"\nIdentity of the samples: `{facts.data_hash}`.")
    return "\n## Data\n\n" + "\n".join(lines) + "\n"


def _licence(facts: ResultFacts) -> str:
    base = f"`{_named(facts.base)}`"
    if facts.licence:
        text = f"These weights come from {base}, which is under {facts.licence}, and stand under the same licence."
    else:
        text = f"These weights come from {base}, whose licence is not stated beside it: find it out before you share."
    rest = "The pictures trained on may bind beside it. Mistakes and biases of the model and of the pictures remain."
    return f"\n## Licence and limits\n\n{text}\n{rest}\n"


def _recipe(facts: ResultFacts) -> str:
    shown = without_places(json.loads(facts.recipe.model_dump_json(exclude_defaults=True)))
    return f"\n## Recipe\n\n```json\n{json.dumps(shown, indent=1, ensure_ascii=False)}\n```\n"


def without_places(value: Any) -> Any:
    """Call files by their names: where they lie is nobody's business, and means nothing elsewhere."""
    if isinstance(value, Mapping):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _named(reference: str) -> str:
    path = Path(reference).expanduser()
    return path.name if path.is_absolute() or path.exists() else reference


def _place(model: str, facts: ResultFacts) -> str:
    own = facts.recipe.model.lora is None or Path(model).expanduser().exists() or not is_hub_id(model)
    return f"path/to/{_named(model)}" if own else model


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
