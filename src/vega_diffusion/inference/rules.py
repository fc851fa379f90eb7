"""Rules by size alone: how many CPU threads pay, and from which size on pictures are decoded in tiles.

A rule by size, not by what is free at the moment, keeps a picture the same on every machine. No torch here.
"""

from __future__ import annotations

from vega_diffusion.specs.profile import Decoder

# Below this many parameters, and latent cells, a U-Net call is too short to share between cores: on two busy ones, two
# threads took 22 s for a picture that one thread draws in 1.7 s; on idle ones they gain little.
_SMALL_PARAMETERS = 50_000_000
_SMALL_CELLS = 32 * 32
# At the pixels' side SDXL's decoder holds about three maps of 256 channels, by count of its layers: 3 GiB in fp32 at
# 1024 x 1024.
WHOLE_PIXELS = 1280 * 1280
WHOLE_PIXELS_LOW_MEMORY = 768 * 768
TILE_PX = 512


OPENVINO_THREADS = 2
"""Most CPU threads that OpenVINO takes for small work when nobody says: one for each row of a guided evaluation."""


def openvino_streams(unet_parameters: int, num_threads: int) -> int:
    """Return how many U-Net evaluations share OpenVINO's threads.

    A small U-Net's layers are too short to share between cores, but its rows are not: with guidance each of the two has
    a core of its own, and waits for the other once a step. Large ones share out their layers and hold one row's memory.

    Args:
        unet_parameters: Of the U-Net.
        num_threads: Of OpenVINO.
    """
    return max(1, min(num_threads, OPENVINO_THREADS)) if unet_parameters <= _SMALL_PARAMETERS else 1


def is_small_work(unet_parameters: int, cells: int) -> bool:
    """Return whether one CPU thread draws a picture of so many latent cells as well as several."""
    return unet_parameters <= _SMALL_PARAMETERS and cells <= _SMALL_CELLS


def tile_px_for(width: int, height: int, decoder: Decoder = "full", low_memory: bool = False) -> int | None:
    """Return the side of the tiles that a picture of this size is decoded in, in px; None decodes it at once.

    The tiny autoencoder never needs tiles. A picture in tiles equals one decoded at once but for slight differences in
    tone, so the rule depends on nothing but its arguments.

    Args:
        width: Of the picture, in px.
        height: Of the picture, in px.
        decoder: Which autoencoder.
        low_memory: Whether memory is short: tiles begin at smaller pictures.
    """
    if decoder == "tiny":
        return None
    whole = WHOLE_PIXELS_LOW_MEMORY if low_memory else WHOLE_PIXELS
    return TILE_PX if width * height > whole else None
