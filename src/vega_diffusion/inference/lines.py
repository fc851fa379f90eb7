"""Lines that a user sees about a picture, worded once for all that draw."""

from __future__ import annotations

NOT_CALIBRATED = "not there; run vega calibrate"


def cut_text(field: str, limit: int, cut: str) -> str:
    """Return the line that names the part of a text that is not read."""
    return f"{field}: longer than {limit} tokens, so this part is not read: {cut!r}; shorten it, or use weighted syntax"


def no_tiny_decoder(model: str) -> str:
    """Return the line that says that a draft is decoded as a final is."""
    return f"{model} has no tiny autoencoder (vae_tiny); decoded by the full one"


def not_certified(profile: str, backend: str, precision: str, model: str) -> str:
    """Return the line that says that nobody measured what a profile costs in likeness."""
    return (
        f"profile {profile}: not certified for these weights on {backend} {precision}; "
        f"vega benchmark certify --model {model} --profile {profile} measures it"
    )


def follows_less(profile: str, change: float, low: float, high: float) -> str:
    """Return the line that says how much less a profile follows prompts than `exact` does, shares of 1."""
    return (
        f"profile {profile}: follows prompts by {-100 * change:.1f} points less than exact does "
        f"({100 * low:+.1f} to {100 * high:+.1f}), says its certificate for these weights"
    )


def departs_from_certified(profile: str, fields: tuple[str, ...]) -> str:
    """Return the line that says that a profile's certificate was made without what a request says itself."""
    return (
        f"profile {profile}: its certificate does not hold with {', '.join(fields)} as this request has it; "
        "leave that to the profile to draw what was measured"
    )


def not_finite_latents(numbers: str, remedy: str) -> str:
    """Return the error of latents that overflowed in numbers of a kind."""
    return f"latents: not finite after denoising in {numbers}; allowed: finite numbers; use {remedy}"
