"""Writing a model as a published-layout SDXL folder, all or nothing.

A folder is written beside its final place, synced and renamed, so that a full disk or a killed process leaves what was
there before. Reading is `checkpoint`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from vega_diffusion.errors import InvalidValue, VegaError
from vega_diffusion.models.detect import autoencoder_spec, text_encoder_spec, unet_spec
from vega_diffusion.models.layout import (
    MODEL_INDEX,
    PIPELINE_CLASS,
    PIPELINE_COMPONENTS,
    SCHEDULER_CONFIG,
    VAE_TINY,
    VEGA_JSON,
    VEGA_JSON_SCHEMA,
    Precision,
    WeightName,
    to_published_key,
    weight_filename,
)
from vega_diffusion.models.text import TextEncoder
from vega_diffusion.models.tokenizer import TokenizerFiles
from vega_diffusion.specs.architecture import ModelSpec

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelParts:
    """The networks and tokenizers of one model, ready to be written."""

    unet: UNet2DConditionModel
    autoencoder: AutoencoderKL
    text_encoder: TextEncoder
    text_encoder_2: TextEncoder
    tokenizer: TokenizerFiles
    tokenizer_2: TokenizerFiles
    tiny_autoencoder: AutoencoderTiny | None = None


def save_model(
    folder: Path,
    spec: ModelSpec,
    parts: ModelParts,
    precisions: Sequence[Precision] = ("fp16",),
    provenance: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> ModelSpec:
    """Write a whole model; the folder appears complete or not at all, and replaces an older one of that name.

    The architecture that is written is that of the networks themselves (an autoencoder's measured scaling factor
    included); name, family, schedule and generation defaults are those of `spec`.

    Args:
        folder: Where the model shall stand.
        spec: What the model is called and how it is used.
        parts: Its networks, in any dtype, on any device.
        precisions: `fp32` writes `*.safetensors`, `fp16` writes `*.fp16.safetensors`; both may be asked for.
        provenance: Where the weights come from, for `vega.json` (recipe, steps, data, commit).
        card: Text of `README.md`.

    Returns:
        The spec as written.

    Raises:
        VegaError: The disk is full or the place cannot be written; the old folder is untouched.
    """
    second = text_encoder_spec(parts.text_encoder_2.config.to_dict(), True)
    written = spec.model_copy(
        update={
            "unet": unet_spec(dict(parts.unet.config)),
            "autoencoder": autoencoder_spec(dict(parts.autoencoder.config)),
            "text_encoder": text_encoder_spec(parts.text_encoder.config.to_dict(), False),
            "text_encoder_2": second,
        }
    )
    with new_folder(folder) as place:
        write_weights(place, "unet", parts.unet, precisions)
        write_weights(place, "vae", parts.autoencoder, precisions)
        if parts.tiny_autoencoder is not None:
            write_weights(place, VAE_TINY, parts.tiny_autoencoder, precisions)
        write_weights(place, "text_encoder", parts.text_encoder, precisions)
        write_weights(place, "text_encoder_2", parts.text_encoder_2, precisions)
        parts.tokenizer.write(place / "tokenizer")
        parts.tokenizer_2.write(place / "tokenizer_2")
        write_description(place, written, provenance, card)
    return written


def check_replaceable(folder: Path, field: str) -> None:
    """Refuse to write a model where something other than a model is.

    Args:
        folder: Where a model shall stand.
        field: What the user calls it.

    Raises:
        InvalidValue: It is a file, or a folder with something in it that is no model.
    """
    if not folder.exists() or (folder / MODEL_INDEX).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        allowed = f"a new or empty folder, or an older model's (with {MODEL_INDEX})"
        raise InvalidValue(field, str(folder), allowed, "choose another place")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success sync it and put it in place, on failure remove it.

    An older `folder` is moved aside, and removed only when the new one stands.

    Raises:
        VegaError: The disk is full or the place cannot be written; the old folder is untouched.
    """
    target = Path(os.path.abspath(folder))
    place = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        yield place
        _sync_tree(place)
        _put_in_place(place, target)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise VegaError(
            f"{folder}: cannot be written ({reason}); what was there before is untouched; "
            "make room or choose another place"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sync_tree(place: Path) -> None:
    for path in (*place.rglob("*"), place):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put_in_place(place: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if not target.exists():
        os.rename(place, target)
        return
    os.rename(target, old)
    try:
        os.rename(place, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_weights(place: Path, component: WeightName, module: nn.Module, precisions: Sequence[Precision]) -> None:
    """Write one network: its config and one weight file a precision, under published names and keys."""
    home = place / component
    home.mkdir(parents=True, exist_ok=True)
    from_diffusers = component in ("unet", "vae", VAE_TINY)
    config = _diffusers_config(module) if from_diffusers else _transformers_config(module, precisions)
    _write_json(home / "config.json", config)
    for precision in precisions:
        tensors = {
            to_published_key(component, key): value.detach().to("cpu", DTYPES[precision]).contiguous()
            for key, value in sorted(module.state_dict().items())
        }
        path = home / weight_filename(component, precision)
        save_file(tensors, path, metadata={"format": "pt"})
        # safetensors leaves its files readable by their owner alone; others may run an installed package.
        path.chmod((home / "config.json").stat().st_mode)


def _diffusers_config(module: Any) -> dict[str, Any]:
    content = {key: value for key, value in dict(module.config).items() if not key.startswith("_")}
    return {"_class_name": type(module).__name__, "_diffusers_version": diffusers.__version__} | content


def _transformers_config(module: Any, precisions: Sequence[Precision]) -> dict[str, Any]:
    spec = text_encoder_spec(module.config.to_dict(), hasattr(module, "text_projection"))
    return {
        "architectures": [spec.architecture],
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "model_type": "clip_text_model",
        "torch_dtype": "float32" if "fp32" in precisions else "float16",
        "transformers_version": transformers.__version__,
    } | spec.to_config()


def write_description(
    place: Path, spec: ModelSpec, provenance: Mapping[str, Any] | None = None, card: str | None = None
) -> None:
    """Write what is not weights: `model_index.json`, the scheduler's config, `vega.json` and the card."""
    index: dict[str, Any] = {"_class_name": PIPELINE_CLASS, "_diffusers_version": diffusers.__version__}
    index["force_zeros_for_empty_prompt"] = spec.force_zeros_for_empty_prompt
    index |= {name: list(entry) for name, entry in PIPELINE_COMPONENTS.items()}
    index["scheduler"] = ["diffusers", spec.schedule.scheduler]
    _write_json(place / MODEL_INDEX, index)
    scheduler = {"_class_name": spec.schedule.scheduler, "_diffusers_version": diffusers.__version__}
    _write_json(place / SCHEDULER_CONFIG, scheduler | spec.schedule.to_config())
    described = {"schema": VEGA_JSON_SCHEMA, "spec": spec.model_dump(mode="json"), "provenance": provenance or {}}
    _write_json(place / VEGA_JSON, described)
    if card is not None:
        (place / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
