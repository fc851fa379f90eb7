"""A certificate of nothing real, for tests that look certificates up."""

from __future__ import annotations

from vega_diffusion.specs.certificate import Certificate
from vega_diffusion.specs.profile import PROFILES

MADE = Certificate(
    profile="turbo",
    definition=PROFILES["turbo"].definition("torch", "fp32"),
    model="tiny",
    model_digest="a" * 64,
    backend="torch",
    precision="fp32",
    decoder="full",
    hardware="2-core-test",
    threads=1,
    exact_s=1.0,
    profile_s=0.5,
    speedup=2.0,
    num_prompts=3,
    latent_cosine_median=0.99,
    latent_cosine_min=0.9,
    psnr_db_median=30.0,
    ssim_median=0.95,
    finished="2026-01-01T00:00:00+00:00",
    versions={"torch": "2"},
)
