"""Certificates on disk: beside a model's weights, or in `$VEGA_HOME`; found by weights and what runs them.

Making one is `benchmarks/certify.py`'s matter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.lines import follows_less, not_certified
from vega_diffusion.models.home import vega_home
from vega_diffusion.specs.certificate import Certificate
from vega_diffusion.specs.profile import PROFILES

FOLDER = "certificates"


def find_certificate(
    model_folder: Path,
    digest: str,
    profile: str,
    backend: str,
    precision: str,
    decoder: str,
    tiny_digest: str | None,
) -> Certificate | None:
    """Return the best certificate of a profile for these very weights as they run here.

    A damaged file is none: what it says cannot be trusted, and its profile then runs with a warning.

    Args:
        model_folder: Which may hold certificates.
        digest: Of the model.
        profile: Which.
        backend: Of the U-Net.
        precision: Of the U-Net.
        decoder: `full` or `tiny`.
        tiny_digest: Of the tiny autoencoder, which a model's digest does not know; it matters where it decodes.
    """
    definition = PROFILES[profile].definition(backend, precision)
    wanted = (profile, definition, digest, backend, precision, decoder)
    found = [
        one
        for one in _certificates(model_folder, digest)
        if (one.profile, one.definition, one.model_digest, one.backend, one.precision, one.decoder) == wanted
        and (decoder == "full" or one.tiny_digest == tiny_digest)
    ]
    return max(found, key=lambda one: one.rank, default=None)


def certificate_lines(
    certificate: Certificate | None, profile: str, backend: str, precision: str, model: str
) -> tuple[str, ...]:
    """Return the line for who draws by a profile that nobody measured, or that was measured to lose; or nothing.

    It loses where its whole interval of prompt-following lies below that of `exact`.
    """
    if profile == "exact":
        return ()
    if certificate is None:
        return (not_certified(profile, backend, precision, model),)
    change, low, high = certificate.following_change, certificate.following_low, certificate.following_high
    if change is None or low is None or high is None or high >= 0:
        return ()
    return (follows_less(profile, change, low, high),)


def keep_certificate(certificate: Certificate, folder: Path | None = None) -> Path:
    """Write a certificate, into a model's folder or `$VEGA_HOME`, and return its file; one of before is replaced.

    Raises:
        VegaError: It cannot be written.
    """
    home = _home(certificate.model_digest) if folder is None else folder / FOLDER
    path = home / f"{certificate.stem}.json"
    part = path.with_suffix(".part")
    try:
        home.mkdir(parents=True, exist_ok=True)
        part.write_text(certificate.to_json(indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise VegaError(f"{path}: cannot be written ({error.strerror}); make room or set VEGA_HOME") from error
    return path


def _home(digest: str) -> Path:
    return vega_home() / FOLDER / digest[:20]


def _certificates(model_folder: Path, digest: str) -> Iterator[Certificate]:
    for folder in (model_folder / FOLDER, _home(digest)):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            try:
                yield Certificate.from_json(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, VegaError):
                continue
