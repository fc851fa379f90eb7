"""A certificate: what a profile gives and takes for one set of weights, as `vega benchmark certify` measured it."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from vega_diffusion.specs.base import Spec
from vega_diffusion.specs.profile import Decoder, ProfileName

Split = Literal["dev", "test"]
"""Of the ruler's suite: which of its two lists of prompts."""


class Certificate(Spec):
    """One profile of one model, beside `exact` with the same prompts and seeds.

    Attributes:
        version: Of this format.
        profile: Which one.
        definition: What it was then, as `ProfileSpec.definition` says; a profile that has changed has no certificate.
        model: As it was called.
        model_digest: Of weights and configs: it holds for these and no others.
        backend: What ran the U-Net.
        precision: In which numbers.
        decoder: Which autoencoder decoded.
        tiny_digest: Of the tiny autoencoder where that one did.
        runs: Evaluations behind prompt-following and Frechet distance: of `exact`, and of the profile.
        hardware: Where the speed was measured, as result files name it.
        threads: Of the processor.
        exact_s: Median seconds of a picture by `exact`.
        profile_s: The same by this profile.
        speedup: Median of the ratios of pairs drawn one after the other.
        num_prompts: Prompts of the drift.
        latent_cosine_median: Of the clean latents with those of `exact`.
        latent_cosine_min: The worst of them.
        psnr_db_median: Of the pictures.
        ssim_median: Of the pictures.
        following_split: Of the ruler's prompts, on which prompt-following and Frechet distance were measured.
        following_change: Prompt-following less that of `exact`, a share; None where no checker reads the model's size.
        following_low: Lower end of its 95 % interval, paired by prompts.
        following_high: Upper end.
        frechet_exact: Frechet distance of `exact` from real scenes; None where it was not measured.
        frechet_change: By how much of itself the profile changes it.
        commit: Of the code, where it ran from a repository.
        finished: When.
        versions: Of torch and what else computes.
    """

    version: int = 2
    profile: ProfileName
    definition: str
    model: str
    model_digest: str
    backend: str
    precision: str
    decoder: Decoder
    tiny_digest: str | None = None
    runs: tuple[str, ...] = ()
    hardware: str
    threads: PositiveInt
    exact_s: PositiveFloat
    profile_s: PositiveFloat
    speedup: PositiveFloat
    num_prompts: PositiveInt
    latent_cosine_median: float
    latent_cosine_min: float
    psnr_db_median: float
    ssim_median: float
    following_split: Split = "dev"
    following_change: float | None = None
    following_low: float | None = None
    following_high: float | None = None
    frechet_exact: NonNegativeFloat | None = None
    frechet_change: float | None = None
    commit: str | None = None
    finished: str
    versions: dict[str, str]

    @property
    def route(self) -> str:
        """What it is of: profile, backend, precision and decoder."""
        return f"{self.profile}-{self.backend}-{self.precision}-{self.decoder}"

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """What makes one better than another of the same: the ruler, its larger list of prompts, then its date."""
        is_ruled = self.following_change is not None
        return is_ruled, is_ruled and self.following_split == "test", self.finished

    @property
    def stem(self) -> str:
        """Name of its file: one for every route, measurement by the ruler and machine."""
        ruler = "drift" if self.following_change is None else self.following_split
        return f"{self.route}-{ruler}-{self.hardware}"

    def __str__(self) -> str:
        following = "not measured"
        if self.following_change is not None:
            low, high = 100 * (self.following_low or 0.0), 100 * (self.following_high or 0.0)
            following = (
                f"{100 * self.following_change:+.1f} points ({low:+.1f} to {high:+.1f}), scenes-{self.following_split}"
            )
        frechet = "not measured" if self.frechet_change is None else f"{100 * self.frechet_change:+.1f} %"
        return "\n".join(
            [
                f"certificate  {self.profile} of {self.model} ({self.model_digest[:10]}) on {self.backend} "
                f"{self.precision}, {self.decoder} decoder",
                f"speed        {self.speedup:.2f} times exact ({self.exact_s:.3f} to {self.profile_s:.3f} s a picture; "
                f"{self.hardware}, {self.threads} threads)",
                f"likeness     latent cosine {self.latent_cosine_median:.4f} (worst {self.latent_cosine_min:.4f}), "
                f"PSNR {self.psnr_db_median:.1f} dB, SSIM {self.ssim_median:.3f}; {self.num_prompts} prompts",
                f"following    {following}",
                f"Frechet      {frechet}",
            ]
        )
