"""Whether a picture can be made again from its record, and what would differ; drawing it is the engine's matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from PIL import Image

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.adapters import Adapters
from vega_diffusion.inference.backends.protocol import InUse
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.metadata import PictureRecord
from vega_diffusion.inference.start import Sources
from vega_diffusion.inference.vae_policy import decoder_there, planned_tile_px
from vega_diffusion.specs.request import GenerateRequest

_SLIGHTLY, _REALLY = "single pixels may differ", "the picture may differ"


def check_repeats(
    record: PictureRecord,
    request: GenerateRequest,
    pictures: Mapping[str, Image.Image],
    components: Components,
    adapters: Adapters,
    route_of: Callable[[GenerateRequest], InUse],
) -> tuple[str, ...]:
    """Check that a loaded model can make a recorded picture again.

    Args:
        record: Of the picture.
        request: Its request, perhaps changed.
        pictures: Pictures in memory that the request may name.
        components: The model.
        adapters: Its LoRAs.
        route_of: Returns what would run the U-Net for a request.

    Returns:
        Warnings, a line each about what makes another picture or may move single pixels.

    Raises:
        VegaError: The weights, or an initial picture or LoRA that the request still names, are not those of the
            record.
    """
    if record.model_digest != components.digest:
        raise VegaError(
            f"from: the picture was made by weights {record.model_digest[:10]}, {components.name!r} now "
            f"holds {components.digest[:10]}; allowed: the same weights; name a model to draw it with others"
        )
    sources = Sources.open(request, pictures)
    for field, then, now in (
        ("init_image", record.init_image_sha256, sources.init_image_sha256),
        ("mask", record.mask_sha256, sources.mask_sha256),
    ):
        name = getattr(request, field)
        if name == getattr(record.request, field) and then != now:
            raise VegaError(f"{field}: {name!r} has changed since; allowed: the same picture; name another one")
    adapters.check(request.loras, dict(zip(record.request.loras, record.loras_sha256, strict=False)))
    compared = [
        ("device", record.device, components.device.type, _SLIGHTLY),
        ("torch", record.software.get("torch", "?"), version("torch"), _SLIGHTLY),
        *_of_decoding(record, request, components),
    ]
    if record.text_sha256 is not None:
        compared.append(("how prompts are read", record.text_sha256[:10], components.text_digest[:10], _REALLY))
    if request.profile == record.request.profile and request.profile not in (None, "exact"):
        in_use = route_of(request)
        now = f"{in_use.backend} {in_use.precision}"
        compared.append(("backend", f"{record.backend} {record.precision}", now, _SLIGHTLY))
    return tuple(f"{what} was {then} and is {now}: {effect}" for what, then, now, effect in compared if then != now)


def _of_decoding(
    record: PictureRecord, request: GenerateRequest, components: Components
) -> Iterator[tuple[str, str, str, str]]:
    """Yield what decides how latents become a picture, then and now, where the request has not changed it itself."""
    then = record.request
    if (request.profile, request.decoder) != (then.profile, then.decoder):
        return
    decoder = decoder_there(components, request.decoder)
    yield "decoder", record.decoder, decoder, _REALLY
    if record.decoder == decoder == "tiny" and record.tiny_sha256 is not None:
        yield "the tiny autoencoder", record.tiny_sha256[:10], str(components.tiny_digest())[:10], _REALLY
    if record.text_sha256 is not None and (request.width, request.height) == (then.width, then.height):
        tiles = planned_tile_px(components, request, decoder)
        yield "decoding", _tiles(record.tile_px), _tiles(tiles), _SLIGHTLY


def _tiles(tile_px: int | None) -> str:
    return "whole" if tile_px is None else f"in tiles of {tile_px} px"
