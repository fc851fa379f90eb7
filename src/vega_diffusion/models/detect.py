"""Any diffusers folder -> `ModelSpec`: reads configs only, never weights.

A folder written by us states its spec in `vega.json`; any other folder is described by its config files, and takes the
generation defaults of the preset whose U-Net it shares.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import diffusers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig

from vega_diffusion.errors import UnreadableModel, VegaError
from vega_diffusion.models.layout import MODEL_INDEX, SCHEDULER_CONFIG, VEGA_JSON, VEGA_JSON_SCHEMA, read_json
from vega_diffusion.specs.architecture import (
    AutoencoderSpec,
    GenerationDefaults,
    ModelSpec,
    NoiseScheduleSpec,
    TextEncoderSpec,
    UNetSpec,
)
from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.tiny_autoencoder import TinyAutoencoderSpec

SpecT = TypeVar("SpecT", bound=Spec)

# Settings that the config files may hold and that change nothing for a trained, evaluated network.
_UNET_IGNORED = {"center_input_sample": False}
_VAE_IMPLIED = ("down_block_types", "up_block_types")


def _defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def _plain(value: Any) -> Any:
    """Lists and tuples alike, and a list of equal entries as the one entry where the spec wants one."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(set(value)) == 1 else value


def _from_config(kind: type[SpecT], values: dict[str, Any], where: str) -> SpecT:
    try:
        return kind.from_dict(values)
    except VegaError as error:
        raise UnreadableModel(f"{where}: {error}") from error


def _select(config: dict[str, Any], defaults: dict[str, Any], fields: set[str], where: str) -> dict[str, Any]:
    """Keep what the spec states, and refuse any other setting that is not at its default."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in public.items():
        if key in fields or key in _UNET_IGNORED:
            continue
        if key not in defaults:
            # An unknown key of a newer or older diffusers: harmless only if it switches nothing on.
            if value in (None, False):
                continue
            raise UnreadableModel(f"{where}: {key}: {value!r} is not known; allowed: the settings of SDXL; remove it")
        if _plain(value) != _plain(defaults[key]):
            raise UnreadableModel(
                f"{where}: {key}: {value!r} is not supported; allowed: {defaults[key]!r}; choose an SDXL-shaped model"
            )
    merged = {key: value for key, value in defaults.items() if key in fields} | public
    return {key: _plain(value) for key, value in merged.items() if key in fields}


def unet_spec(config: dict[str, Any], where: str = "unet/config.json") -> UNetSpec:
    """Describe a U-Net by its diffusers config; what the config leaves out has diffusers' defaults, not SDXL's.

    Args:
        config: The content of `unet/config.json`, or the `config` of a module.
        where: What to call it in errors.

    Raises:
        UnreadableModel: The config asks for something that SDXL-shaped networks do not have, or contradicts itself.
    """
    chosen = _select(config, _defaults_of(UNet2DConditionModel.__init__), set(UNetSpec.model_fields), where)
    for field in ("cross_attention_dim", "only_cross_attention"):
        chosen[field] = _one(chosen[field])
    return _from_config(UNetSpec, chosen, where)


def autoencoder_spec(config: dict[str, Any], where: str = "vae/config.json") -> AutoencoderSpec:
    """Describe an autoencoder by its diffusers config.

    Raises:
        UnreadableModel: The config asks for something that `AutoencoderKL`s of SDXL do not have.
    """
    implied = {key: config[key] for key in _VAE_IMPLIED if key in config}
    rest = {key: value for key, value in config.items() if key not in _VAE_IMPLIED}
    chosen = _select(rest, _defaults_of(AutoencoderKL.__init__), set(AutoencoderSpec.model_fields), where)
    spec = _from_config(AutoencoderSpec, chosen, where)
    for key, value in implied.items():
        if _plain(value) != spec.to_config()[key]:
            raise UnreadableModel(
                f"{where}: {key}: {value!r} is not supported; allowed: {spec.to_config()[key]!r}; "
                "choose an SDXL-shaped model"
            )
    return spec


def tiny_autoencoder_spec(config: dict[str, Any], where: str = "vae_tiny/config.json") -> TinyAutoencoderSpec:
    """Describe a tiny autoencoder by its diffusers config.

    Raises:
        UnreadableModel: The config is of another class, or asks for something that an `AutoencoderTiny` does not have.
    """
    kind = config.get("_class_name", "AutoencoderTiny")
    if kind != "AutoencoderTiny":
        raise UnreadableModel(
            f"{where}: a {kind} is no tiny autoencoder; allowed: AutoencoderTiny; name a folder such as taesdxl's"
        )
    # diffusers writes the decoder's widths a second time, under the name that other autoencoders have for theirs.
    rest = {key: value for key, value in config.items() if key != "block_out_channels"}
    fields = set(TinyAutoencoderSpec.model_fields)
    return _from_config(
        TinyAutoencoderSpec, _select(rest, _defaults_of(AutoencoderTiny.__init__), fields, where), where
    )


def text_encoder_spec(config: dict[str, Any], with_projection: bool, where: str = "config.json") -> TextEncoderSpec:
    """Describe a CLIP text encoder by its transformers config.

    Raises:
        UnreadableModel: A value is not allowed.
    """
    defaults = CLIPTextConfig().to_dict()
    fields = set(TextEncoderSpec.model_fields) - {"with_projection"}
    chosen = {key: config.get(key, defaults.get(key)) for key in fields}
    return _from_config(TextEncoderSpec, {**chosen, "with_projection": with_projection}, where)


def schedule_spec(config: dict[str, Any], where: str = SCHEDULER_CONFIG) -> NoiseScheduleSpec:
    """Describe a noise schedule by its scheduler config; what it leaves out has the defaults of its class.

    Raises:
        UnreadableModel: The scheduler class is unknown, the betas are a list, or a value is not allowed.
    """
    name = str(config.get("_class_name", ""))
    scheduler = getattr(diffusers, name, None)
    if scheduler is None or not name.endswith("Scheduler"):
        raise UnreadableModel(
            f"{where}: _class_name: {name!r} is not known; allowed: a scheduler of diffusers; mend the file"
        )
    if config.get("trained_betas") is not None:
        raise UnreadableModel(f"{where}: trained_betas is not supported; allowed: null; choose another model")
    neutral = {"rescale_betas_zero_snr": False, "prediction_type": "epsilon", "steps_offset": 0}
    neutral |= {"timestep_spacing": "leading"}
    known = neutral | _defaults_of(scheduler.__init__) | config
    fields = set(NoiseScheduleSpec.model_fields) - {"scheduler"}
    return _from_config(NoiseScheduleSpec, {"scheduler": name} | {key: known[key] for key in fields}, where)


def detect_spec(folder: Path) -> ModelSpec:
    """Describe a model folder by its config files alone, `vega.json` aside.

    Works for SDXL-shaped folders and for Stable Diffusion 1; other pipelines are refused with one line.

    Raises:
        MissingFile: A config file is not there.
        UnreadableModel: The folder holds another kind of model.
        InvalidValue: A config holds a value that is not allowed.
    """
    index = read_json(folder / MODEL_INDEX)
    second = index.get("text_encoder_2")
    has_second = bool(second) and second != [None, None]
    unet_entry = (index.get("unet") or [None, None])[1]
    if unet_entry != "UNet2DConditionModel":
        raise UnreadableModel(
            f"{folder / MODEL_INDEX}: a {index.get('_class_name')} is not SDXL-shaped; "
            "allowed: a pipeline with a UNet2DConditionModel; choose an SDXL-shaped model"
        )

    def config(name: str) -> tuple[dict[str, Any], str]:
        return read_json(folder / name), str(folder / name)

    unet = unet_spec(*config("unet/config.json"))
    autoencoder = autoencoder_spec(*config("vae/config.json"))
    known = next((spec for spec in PRESETS.values() if spec.unet.same_network(unet)), None)
    first, where = config("text_encoder/config.json")
    text_encoder_2 = None
    if has_second:
        second_config, second_where = config("text_encoder_2/config.json")
        text_encoder_2 = text_encoder_spec(second_config, True, second_where)
    side = unet.sample_size * autoencoder.downscale
    generation = known.generation if known else GenerationDefaults()
    return ModelSpec(
        name=folder.resolve().name,
        family=known.family if known else ("sdxl" if has_second else "sd-1"),
        unet=unet,
        text_encoder=text_encoder_spec(first, False, where),
        text_encoder_2=text_encoder_2,
        autoencoder=autoencoder,
        schedule=schedule_spec(*config(SCHEDULER_CONFIG)),
        generation=generation.model_copy(update={"width": side, "height": side}),
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", has_second)),
    )


def load_spec(folder: Path) -> ModelSpec:
    """Return the spec of a model folder: what `vega.json` states if there is one, else what the configs say.

    Raises:
        MissingFile: The folder has no `model_index.json`, or a config file is not there.
        UnreadableModel: The folder is of another kind, or `vega.json` contradicts the configs.
        InvalidValue: A value is not allowed.
    """
    detected = detect_spec(folder)
    path = folder / VEGA_JSON
    if not path.is_file():
        return detected
    content = read_json(path)
    schema = content.get("schema")
    if schema != VEGA_JSON_SCHEMA:
        raise UnreadableModel(f"{path}: schema: {schema!r} is not known; allowed: {VEGA_JSON_SCHEMA}; update vega")
    stated = _from_config(ModelSpec, content.get("spec") or {}, f"{path}: spec")
    for field in ("unet", "autoencoder", "text_encoder", "text_encoder_2", "schedule"):
        if getattr(stated, field) != getattr(detected, field):
            raise UnreadableModel(
                f"{path}: {field} is not what its config file says; allowed: the same; "
                f"remove {VEGA_JSON} to trust the config files"
            )
    return stated
