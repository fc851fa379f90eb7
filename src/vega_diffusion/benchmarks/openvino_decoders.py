"""Autoencoders' decoders in OpenVINO as cases time and compare them: random ones, and a model's own in 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vega_diffusion.inference.backends.open import PartName
    from vega_diffusion.inference.backends.protocol import LatentDecoder, Precision
    from vega_diffusion.inference.backends.quantise_rule import QuantisationRule

SAMPLES = 2  # random weights have no quality that more could save


def is_installed() -> bool:
    """Return whether there is OpenVINO, and NNCF for 8 bits."""
    return all(find_spec(name) is not None for name in ("openvino", "nncf"))


def random_decoder(
    what: PartName, precision: Precision, network: Any, digest: str, latents: Tensor, threads: int
) -> Callable[[], object]:
    """Return what decodes one picture of a random autoencoder, with all layers in int8 where that is asked.

    Args:
        what: `vae-decoder` or `tiny-vae-decoder`.
        precision: Which, exactly.
        network: The autoencoder, in float32.
        digest: Names its weights.
        latents: `[1, C, h, w]`.
        threads: Of OpenVINO.
    """
    from vega_diffusion.inference.backends.open import Opening, Weights, open_decoder
    from vega_diffusion.inference.backends.quantise_rule import QuantisationRule

    rule = QuantisationRule(num_samples=SAMPLES, num_probes=0)
    opening = Opening(say=_say, num_threads=threads, may_fall_back=False, decoder_rule=rule, keep_blobs=False)
    weights = Weights(digest, lambda: network)
    return partial(open_decoder(precision, weights, opening, what, lambda: [latents] * SAMPLES).decode, latents)


def eight_bit_decoder(vae: Any, latents: Sequence[Tensor], rule: QuantisationRule, home: Path) -> LatentDecoder:
    """Return an autoencoder's decoder in 8 bits.

    Args:
        vae: In float32.
        latents: To calibrate on, `[1, C, h, w]` in the autoencoder's own scale.
        rule: Which layers stay out.
        home: Where it is kept.
    """
    from vega_diffusion.inference.backends.open import Opening, Weights, open_decoder

    opening = Opening(say=_say, may_fall_back=False, decoder_rule=rule, home=home, keep_blobs=False)
    return open_decoder("int8", Weights("own", lambda: vae), opening, latents=lambda: latents)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
