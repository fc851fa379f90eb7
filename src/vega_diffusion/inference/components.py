"""The parts of one model: found, chosen a device and a dtype, read at first use, dropped when asked.

What a model folder looks like is `models/checkpoint.py`'s matter; what is done with the parts is the engine's.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTokenizer

from vega_diffusion.errors import InvalidValue, Unavailable, UnreadableModel
from vega_diffusion.inference.backends.torch_int8 import in_8_bits
from vega_diffusion.inference.prompts import TextStack
from vega_diffusion.inference.rules import is_small_work
from vega_diffusion.models.checkpoint import (
    load_autoencoder,
    load_scheduler_config,
    load_text_encoder,
    load_tiny_autoencoder,
    load_tokenizer,
    load_unet,
)
from vega_diffusion.models.detect import load_spec, tiny_autoencoder_spec
from vega_diffusion.models.digest import file_digest, model_digest, text_digest
from vega_diffusion.models.find import resolve_model
from vega_diffusion.models.layout import TOKENIZERS, VAE_TINY, WEIGHT_STEMS, find_weights, read_json, weights_in
from vega_diffusion.models.tiny_folder import find_tiny, tiny_home
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.tiny_autoencoder import TinyAutoencoderSpec

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Above this many parameters a CPU that can runs in bfloat16: float32 would take twice the memory and time.
_LARGE_PARAMETERS = 300_000_000
_IN_8_BITS = " in 8 bits"


def choose_device(name: str) -> torch.device:
    """Return the device of that name; `auto` takes an accelerator if there is one.

    Raises:
        InvalidValue: Unknown name.
        Unavailable: This machine, or this build of torch, does not have it.
    """
    if name not in DEVICES:
        raise InvalidValue("device", name, f"one of: {', '.join(DEVICES)}", "choose one of them")
    present = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_there in present.items() if is_there)
    if not present[name]:
        have = ", ".join(device for device, is_there in present.items() if is_there)
        raise Unavailable(f"device: {name!r} is not available here; allowed: {have}; use one of them or --device auto")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, num_parameters: int) -> torch.dtype:
    """Return the dtype of that name; `auto` weighs the device against the model's size.

    A CPU takes float32 for small models, and bfloat16 for large ones where torch has kernels for it (float16 is many
    times slower there) or float32 would not fit into memory; accelerators take float16.

    Raises:
        InvalidValue: Unknown name.
    """
    if name == "auto":
        if device.type != "cpu":
            return torch.float16
        is_large = num_parameters > _LARGE_PARAMETERS
        narrow = is_large and (has_bfloat16_kernels() or 4 * num_parameters > free_memory(device))
        return torch.bfloat16 if narrow else torch.float32
    if name not in DTYPES:
        raise InvalidValue("dtype", name, f"one of: auto, {', '.join(DTYPES)}", "choose one of them")
    return DTYPES[name]


def has_bfloat16_kernels() -> bool:
    """Return whether torch multiplies bfloat16 on this CPU at speed: by instructions of its own for it.

    An x86 processor with AVX-512 alone converts back and forth and takes three to four times as long as in float32,
    one with AVX2 alone far longer (docs/log.md).
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    if torch.cpu._is_avx512_supported():
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_low_memory(wanted: bool | None, num_bytes: int, device: torch.device) -> bool:
    """Return whether to drop each part after its use: as wanted, else when weights would take half of what is free."""
    if wanted is not None:
        return wanted
    return num_bytes > free_memory(device) // 2


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; on unified or unknown ones, in the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


class Components:
    """One model's parts; reading is lazy, guarded by a lock, and undone by `release`.

    Attributes:
        name: As the user asked for it.
        folder: Where its files are.
        spec: Its architecture and generation defaults.
        device: Where it runs.
        dtype: In which numbers; of latents and embeddings too.
        low_memory: Whether each part is dropped after its use.
        unet_parameters: How many the U-Net has.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        spec: ModelSpec,
        device: torch.device,
        dtype: torch.dtype,
        low_memory: bool,
        unet_parameters: int,
    ) -> None:
        self.name, self.folder, self.spec = name, folder, spec
        self.device, self.dtype, self.low_memory = device, dtype, low_memory
        self.unet_parameters = unet_parameters
        self._parts: dict[str, Any] = {}
        self._lock = RLock()

    @classmethod
    def open(cls, name: str, device: str, dtype: str, low_memory: bool | None) -> Self:
        """Find a model, read its configs, choose device and dtype; weights are not read yet.

        Raises:
            VegaError: There is no such model, device or dtype, or the folder is not a whole SDXL-shaped model.
        """
        place = choose_device(device)
        if dtype != "auto":
            choose_dtype(dtype, place, 0)
        folder = resolve_model(name)
        spec = load_spec(folder)
        if not spec.is_sdxl_shaped or spec.unet.in_channels != spec.autoencoder.latent_channels:
            raise UnreadableModel(
                f"model: {name!r} is not an SDXL text-to-image model (two text encoders, size conditioning, "
                f"U-Net input channels {spec.unet.in_channels}); choose an SDXL-shaped model"
            )
        num_stored = {component: stored_parameters(folder, component) for component in WEIGHT_STEMS}
        numbers = choose_dtype(dtype, place, num_stored["unet"])
        low = choose_low_memory(low_memory, sum(num_stored.values()) * numbers.itemsize, place)
        return cls(name, folder, spec, place, numbers, low, num_stored["unet"])

    def text_stack(self) -> TextStack:
        """Return tokenizers and text encoders."""
        return self._part("text", self._load_text)

    def tokenizers(self) -> list[CLIPTokenizer]:
        """Return the tokenizers, first and second."""
        return self._part("tokenizers", lambda: [load_tokenizer(self.folder, name) for name in TOKENIZERS])

    def unet(self) -> UNet2DConditionModel:
        """Return the U-Net."""
        return self._part("unet", self._load_unet)

    def unet_in_8_bits(self) -> nn.Module:
        """Return a U-Net of its own whose layers are in 8 bits (`backends/torch_int8.py`); LoRAs do not act on it."""
        return self._part("unet" + _IN_8_BITS, lambda: in_8_bits(self._load_unet()))

    def vae(self) -> AutoencoderKL:
        """Return the autoencoder; in float32 where its config asks for it and the model runs in float16."""
        wide = self.dtype == torch.float16 and self.spec.autoencoder.force_upcast
        dtype = torch.float32 if wide else self.dtype
        return self._part("vae", lambda: self._settle(load_autoencoder(self.folder, self.spec.autoencoder, dtype)))

    def tiny_vae(self, reference: str | None = None) -> AutoencoderTiny | None:
        """Return a tiny autoencoder for this model's latents, in the model's dtype.

        Args:
            reference: A folder such as `taesdxl`, a model that has one, or a Hub id; None takes the model's own.

        Returns:
            It, or None where nothing is named and the model has none.

        Raises:
            VegaError: There is none at that place, it is damaged, or it is made for latents of another shape.
        """
        home = tiny_home(self.folder) if reference is None else find_tiny(reference)
        return None if home is None else self._part(f"vae_tiny {home}", lambda: self._load_tiny(home))

    def tiny_digest(self, reference: str | None = None) -> str | None:
        """Return the hash of a tiny autoencoder's weights and config, for the record of a picture; None without one.

        The model's own `digest` does not know it: a model is the same model with or without it.
        """
        home = tiny_home(self.folder) if reference is None else find_tiny(reference)
        if home is None:
            return None
        paths = (home / "config.json", *weights_in(home, VAE_TINY, self.dtype).paths)
        return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """Content of `scheduler_config.json`."""
        return self._part("scheduler", lambda: load_scheduler_config(self.folder))

    @property
    def digest(self) -> str:
        """Digest of the weights and configs that this dtype reads."""
        return self._part("digest", lambda: model_digest(self.folder, self.dtype))

    @property
    def text_digest(self) -> str:
        """Digest of the tokenizers' settings and of the rule for missing negative prompts, for records."""
        return self._part("text_digest", lambda: text_digest(self.folder, self.spec.force_zeros_for_empty_prompt))

    def is_small_work(self, width: int, height: int) -> bool:
        """Return whether one CPU thread draws a picture of this size, in pixels, as well as several."""
        cells = width * height // self.spec.autoencoder.downscale**2
        return self.device.type == "cpu" and is_small_work(self.unet_parameters, cells)

    def release(self, part: str) -> None:
        """Drop a part (`text`, `unet`, `vae`); it is read again when it is needed again."""
        with self._lock:
            self._parts.pop(part, None)
            self._parts.pop(part + _IN_8_BITS, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _part(self, name: str, load: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._parts:
                # Not as inference tensors, whoever asks: those could never be cast or trained.
                with torch.inference_mode(False):
                    self._parts[name] = load()
            return self._parts[name]

    def _settle(self, module: Any) -> Any:
        return module.to(self.device).eval().requires_grad_(False)

    def _load_unet(self) -> UNet2DConditionModel:
        return self._settle(load_unet(self.folder, self.spec.unet, self.dtype))

    def _load_tiny(self, home: Path) -> AutoencoderTiny:
        return self._settle(load_tiny_autoencoder(home, self.tiny_spec(home), self.dtype))

    def tiny_spec(self, home: Path) -> TinyAutoencoderSpec:
        """Return the architecture of the tiny autoencoder in a folder.

        Raises:
            UnreadableModel: It is not readable, or made for latents of another shape.
        """
        where = home / "config.json"
        spec, full = tiny_autoencoder_spec(read_json(where), str(where)), self.spec.autoencoder
        if (spec.latent_channels, spec.downscale) != (full.latent_channels, full.downscale):
            raise UnreadableModel(
                f"{where}: latents of {spec.latent_channels} channels, {spec.downscale} px a cell; allowed: "
                f"{full.latent_channels} channels, {full.downscale} px, as {self.name} has; name one made for it"
            )
        return spec

    def _load_text(self) -> TextStack:
        first, second = self.spec.text_encoder, self.spec.text_encoder_2
        assert second is not None, "checked in open"
        return TextStack(
            self.tokenizers(),
            [
                self._settle(load_text_encoder(self.folder, "text_encoder", first, self.dtype)),
                self._settle(load_text_encoder(self.folder, "text_encoder_2", second, self.dtype)),
            ],
        )


def stored_parameters(folder: Path, component: str) -> int:
    """Return how many numbers the weight files of a component hold; reads their headers only."""
    count = 0
    for path in find_weights(folder, component).paths:
        try:
            with safe_open(path, framework="pt") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UnreadableModel(f"{path}: truncated or not a safetensors file ({error}); fetch it again") from error
    return count
