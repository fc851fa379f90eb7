"""A model's text encoders and decoders in OpenVINO, beside its U-Net there; each is converted when first asked for.

What stays in torch: weighted prompts, LoRAs of text encoders, and the encoder of pictures to start from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor

from vega_diffusion.inference.backends.open import (
    Opening,
    PartName,
    Weights,
    decoder_beside,
    open_decoder,
    open_text_encoder,
    precision_beside,
)
from vega_diffusion.inference.backends.protocol import LatentDecoder, Precision, TextEncoder
from vega_diffusion.inference.components import Components
from vega_diffusion.models.autoencoder import build_autoencoder, build_tiny_autoencoder
from vega_diffusion.models.checkpoint import load_autoencoder, load_text_encoder, load_tiny_autoencoder
from vega_diffusion.models.layout import TextEncoderName
from vega_diffusion.models.tiny_folder import find_tiny, tiny_home

PartT = TypeVar("PartT")
TEXT_PARTS: tuple[tuple[PartName, TextEncoderName], ...] = (
    ("text-encoder", "text_encoder"),
    ("text-encoder-2", "text_encoder_2"),
)


@dataclass(frozen=True)
class OpenVinoText:
    """Tokenizers and converted text encoders, first and second."""

    tokenizers: Sequence[Any]
    encoders: Sequence[TextEncoder]
    lengths: Sequence[int]

    def max_length(self, index: int) -> int:
        """Return how many tokens encoder `index` reads, start and end included."""
        return min(self.tokenizers[index].model_max_length, self.lengths[index])

    def encode(self, index: int, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return encoder `index`'s penultimate hidden states `[N, L, D]` and, with a projection, pooled `[N, P]`."""
        return self.encoders[index].encode(token_ids)


@dataclass(frozen=True)
class OpenVinoVae:
    """A converted decoder that is called as diffusers' autoencoders are; `config` is theirs."""

    decoder: LatentDecoder
    config: Any
    dtype: torch.dtype = torch.float32

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Return `[N, 3, H, W]` in about -1..1 from latents `[N, C, h, w]` in the autoencoder's own scale."""
        assert not return_dict, "tuples alone"
        return (self.decoder.decode(latents),)


class OpenVinoParts:
    """The parts of one model beside its U-Net; safe to call from several threads.

    Args:
        components: The model.
        unet: The precision of the U-Net, which decides theirs.
        opening: How they are opened.
        is_small: Whether text encoders hold 8-bit weights, for the sake of memory.
    """

    def __init__(self, components: Components, unet: Precision, opening: Opening, is_small: bool = False) -> None:
        self._components = components
        self._precision: Precision = precision_beside(unet)
        self._of_text: Precision = "int8-weights" if is_small else self._precision
        self._of_decoder: Precision = decoder_beside(unet)
        # Each of them runs at one shape or two: the rest would only hold memory.
        self._opening = replace(opening, max_shapes=2)
        self._open: dict[str, Any] = {}
        self._lock = RLock()

    @property
    def name(self) -> str:
        """The model's."""
        return self._components.name

    def text(self) -> OpenVinoText:
        """Return tokenizers and text encoders."""
        parts, spec = self._components, self._components.spec
        assert spec.text_encoder_2 is not None, "an SDXL-shaped model"
        specs = spec.text_encoder, spec.text_encoder_2

        def opened(what: PartName, name: TextEncoderName, index: int) -> TextEncoder:
            weights = Weights(parts.digest, lambda: load_text_encoder(parts.folder, name, specs[index], torch.float32))
            return open_text_encoder(self._of_text, weights, self._opening, what)

        def all_opened() -> OpenVinoText:
            encoders = [opened(what, name, index) for index, (what, name) in enumerate(TEXT_PARTS)]
            return OpenVinoText(parts.tokenizers(), encoders, [one.max_position_embeddings for one in specs])

        return self._part("text", all_opened)

    def vae(self) -> OpenVinoVae:
        """Return the full autoencoder's decoder."""
        parts = self._components

        def opened() -> OpenVinoVae:
            spec = parts.spec.autoencoder
            weights = Weights(parts.digest, lambda: load_autoencoder(parts.folder, spec, torch.float32))
            with torch.device("meta"):
                config = build_autoencoder(spec).config
            return OpenVinoVae(open_decoder(self._of_decoder, weights, self._opening), config)

        return self._part("vae", opened)

    def tiny_vae(self, reference: str | None = None) -> OpenVinoVae | None:
        """Return the tiny autoencoder's decoder that a reference names, else the model's own, else None.

        Raises:
            VegaError: There is none at that place, it is damaged, or it is made for latents of another shape.
        """
        parts = self._components
        home = tiny_home(parts.folder) if reference is None else find_tiny(reference)
        if home is None:
            return None

        def opened() -> OpenVinoVae:
            spec, digest = parts.tiny_spec(home), parts.tiny_digest(reference)
            assert digest is not None, "it is there"
            weights = Weights(digest, lambda: load_tiny_autoencoder(home, spec, torch.float32))
            with torch.device("meta"):
                config = build_tiny_autoencoder(spec).config
            return OpenVinoVae(open_decoder(self._precision, weights, self._opening, "tiny-vae-decoder"), config)

        return self._part(f"tiny {home}", opened)

    def release_text(self) -> None:
        """Drop the text encoders; they are opened again when they are needed again."""
        with self._lock:
            text: OpenVinoText | None = self._open.pop("text", None)
        for encoder in () if text is None else text.encoders:
            encoder.close()

    def _part(self, name: str, load: Callable[[], PartT]) -> PartT:
        with self._lock:
            if name not in self._open:
                self._open[name] = load()
            return self._open[name]
