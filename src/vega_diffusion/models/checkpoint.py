"""Reading the components of a model folder: strict about keys and shapes, quiet, and sparing with memory.

Writing is `export`, finding a folder by name is `find`, describing it is `detect`. Networks are built from the spec on
the meta device and take the file's tensors as they are (memory-mapped when no cast is needed), so that loading costs
hardly more than the weights themselves and nothing is ever initialised at random by accident.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTokenizer

from vega_diffusion.errors import MissingFile, UnreadableModel
from vega_diffusion.models.autoencoder import build_autoencoder, build_tiny_autoencoder
from vega_diffusion.models.layout import (
    TOKENIZER_FILES,
    VAE_TINY,
    TextEncoderName,
    TokenizerName,
    WeightFiles,
    find_weights,
    from_published_key,
    read_json,
    weights_in,
)
from vega_diffusion.models.text import TextEncoder, build_text_encoder
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import AutoencoderSpec, ModelSpec, TextEncoderSpec, UNetSpec
from vega_diffusion.specs.tiny_autoencoder import TinyAutoencoderSpec

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def load_component(folder: Path, spec: ModelSpec, component: str, dtype: torch.dtype | None = None) -> nn.Module:
    """Read a network of a model folder, on the CPU, in evaluation mode.

    Args:
        folder: A model folder.
        spec: Its architecture (`detect.load_spec(folder)`), of an SDXL-shaped model.
        component: A key of `layout.WEIGHT_STEMS`.
        dtype: Cast to this; None keeps the file's.

    Raises:
        UnreadableModel: Weights are missing, truncated or of another architecture; the message names the file.
    """
    match component:
        case "unet":
            return load_unet(folder, spec.unet, dtype)
        case "vae":
            return load_autoencoder(folder, spec.autoencoder, dtype)
        case "text_encoder":
            return load_text_encoder(folder, "text_encoder", spec.text_encoder, dtype)
        case _:
            assert spec.text_encoder_2 is not None, "an SDXL-shaped model"
            return load_text_encoder(folder, "text_encoder_2", spec.text_encoder_2, dtype)


def load_unet(folder: Path, spec: UNetSpec, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """Read the U-Net of a model folder, on the CPU, in evaluation mode.

    Args:
        folder: A model folder (`find.resolve_model`).
        spec: Its architecture (`detect.load_spec(folder).unet`).
        dtype: Cast to this; None keeps the file's.

    Raises:
        UnreadableModel: Weights are missing, truncated or of another architecture; the message names the file.
    """
    with torch.device("meta"):
        unet = build_unet(spec)
    return _take_weights(unet, find_weights(folder, "unet", dtype), dtype)


def load_autoencoder(folder: Path, spec: AutoencoderSpec, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """Read the autoencoder of a model folder, on the CPU, in evaluation mode.

    Args:
        folder: A model folder.
        spec: Its architecture (`detect.load_spec(folder).autoencoder`).
        dtype: Cast to this; None keeps the file's.

    Raises:
        UnreadableModel: Weights are missing, truncated or of another architecture; the message names the file.
    """
    with torch.device("meta"):
        autoencoder = build_autoencoder(spec)
    return _take_weights(autoencoder, find_weights(folder, "vae", dtype), dtype)


def load_tiny_autoencoder(home: Path, spec: TinyAutoencoderSpec, dtype: torch.dtype | None = None) -> AutoencoderTiny:
    """Read a tiny autoencoder from its own folder, on the CPU, in evaluation mode.

    Args:
        home: The folder of its config and weights, such as `taesdxl` or `MODEL/vae_tiny`.
        spec: Its architecture (`detect.tiny_autoencoder_spec`).
        dtype: Cast to this; None keeps the file's.

    Raises:
        UnreadableModel: Weights are missing, truncated or of another architecture; the message names the file.
    """
    with torch.device("meta"):
        autoencoder = build_tiny_autoencoder(spec)
    return _take_weights(autoencoder, weights_in(home, VAE_TINY, dtype), dtype)


def load_text_encoder(
    folder: Path, component: TextEncoderName, spec: TextEncoderSpec, dtype: torch.dtype | None = None
) -> TextEncoder:
    """Read a text encoder of a model folder, on the CPU, in evaluation mode.

    Args:
        folder: A model folder.
        component: `text_encoder` or `text_encoder_2`.
        spec: Its architecture.
        dtype: Cast to this; None keeps the file's.

    Raises:
        UnreadableModel: Weights are missing, truncated or of another architecture; the message names the file.
    """
    with torch.device("meta"):
        encoder = build_text_encoder(spec)
    _take_weights(encoder, find_weights(folder, component, dtype), dtype)
    # The one buffer that no file holds.
    positions = torch.arange(spec.max_position_embeddings).unsqueeze(0)
    for module in encoder.modules():
        if "position_ids" in module._buffers:
            module.register_buffer("position_ids", positions.clone(), persistent=False)
    return encoder


def load_tokenizer(folder: Path, component: TokenizerName) -> CLIPTokenizer:
    """Read a tokenizer of a model folder.

    Raises:
        MissingFile: `vocab.json` or `merges.txt` is not there.
        UnreadableModel: The files do not make a CLIP tokenizer.
    """
    home = folder / component
    for name in TOKENIZER_FILES:
        if not (home / name).is_file():
            raise MissingFile(f"{home / name}: {component} needs this file; complete the folder or fetch it again")
    try:
        return CLIPTokenizer.from_pretrained(home, local_files_only=True)
    except Exception as error:  # the Rust tokenizer raises bare Exception for a bad vocabulary
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableModel(f"{home}: not a CLIP tokenizer ({reason}); fetch the folder again") from error


def load_scheduler_config(folder: Path) -> dict[str, Any]:
    """Return the content of `scheduler_config.json` as it is, for `from_config` of any diffusers scheduler."""
    return read_json(folder / "scheduler" / "scheduler_config.json")


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a safetensors file one by one, memory-mapped.

    Raises:
        MissingFile: The file cannot be opened.
        UnreadableModel: It is truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Not an iterable of keys but a handle with a method that lists them.
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_tensor(key)
    except OSError as error:
        raise MissingFile(f"{path}: cannot be read ({error}); complete the folder or fetch it again") from error
    except SafetensorError as error:
        raise UnreadableModel(f"{path}: truncated or not a safetensors file ({error}); fetch the file again") from error


def _take_weights(module: ModuleT, files: WeightFiles, dtype: torch.dtype | None) -> ModuleT:
    """Give a module on the meta device the tensors of its files; every key and shape must agree."""
    expected = {key: tensor.shape for key, tensor in module.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for path in files.paths:
        for published, tensor in read_tensors(path):
            key = from_published_key(files.component, published)
            if key is None:
                continue
            if key not in expected:
                raise _misfit(path, f"{published} has no place in this {files.component}")
            tensor = _fit(tensor, expected[key])
            if tensor.shape != expected[key]:
                raise _misfit(path, f"{published} is {list(tensor.shape)}, wanted {list(expected[key])}")
            state[key] = tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)
    missing = sorted(expected.keys() - state.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _misfit(files.paths[0], f"{missing[0]}{more} missing")
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(True)
    return module.eval()


def _fit(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Old autoencoders hold attention weights as 1x1 convolutions, `[n, n, 1, 1]` for `[n, n]`."""
    if tensor.dim() == 4 and len(shape) == 2 and tensor.shape[2:] == (1, 1):
        return tensor.reshape(tensor.shape[:2])
    return tensor


def _misfit(path: Path, what: str) -> UnreadableModel:
    return UnreadableModel(
        f"{path}: weights do not fit {path.parent.name}/config.json ({what}); allowed: the keys and shapes of that "
        "config; fetch the folder again"
    )
