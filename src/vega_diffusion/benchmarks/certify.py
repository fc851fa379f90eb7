"""Case `certify`: what a profile gives and takes for a model's weights; writes the certificate for the engine."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.protocol import summarise, time_interleaved
from vega_diffusion.benchmarks.report import Bar, Measurement, describe_hardware, git
from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.certificate import Split
from vega_diffusion.specs.profile import PROFILES, ProfileName

if TYPE_CHECKING:
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.specs.certificate import Certificate
    from vega_diffusion.specs.request import GenerateRequest

SEED = 4_100_000
COMPUTES = ("torch", "diffusers", "openvino", "nncf", "vega-diffusion")
# What a profile may cost: points of prompt-following at the lower end, share of the Frechet distance, cosine.
FOLLOWING = {"balanced": -0.02, "turbo": -0.04}
FRECHET, COSINE = 0.02, 0.98


def measure(
    profile: ProfileName,
    model: str = "vega-mini",
    prompts: int = 200,
    repeats: int = 7,
    processes: int = 1,
    ruler: bool = True,
    split: Split = "dev",
    into_model: bool = False,
    may_compile: bool = False,
) -> Measurement:
    """Certify a profile for a model's weights on this machine, beside `exact` with the same prompts and seeds.

    Args:
        profile: balanced, turbo or realtime.
        model: A name, a diffusers folder or a Hub id.
        prompts: For the drift of latents and pictures; above 175 some are drawn from two seeds.
        repeats: Timed pairs of pictures.
        processes: That draw for the ruler.
        ruler: Measure prompt-following and Frechet distance, too; needs a model of the mini family and the extra eval.
        split: Of the ruler's prompts: dev while a profile is being made, test once it stands (2,196 pictures by each).
        into_model: Keep the certificate in the model's folder, not in $VEGA_HOME.
        may_compile: As of `Engine.load`; without the ruler, whose pictures are drawn many at once and not compiled.
    """
    import torch

    from vega_diffusion.inference.certificates import keep_certificate
    from vega_diffusion.inference.engine import Engine
    from vega_diffusion.inference.vae_policy import decoder_there
    from vega_diffusion.specs.certificate import Certificate

    if profile == "exact":
        others = ", ".join(name for name in PROFILES if name != "exact")
        raise InvalidValue("--profile", profile, f"one of: {others}", "exact needs no certificate")
    if may_compile and ruler:
        raise InvalidValue("--ruler", ruler, "--no-ruler with --may-compile", "its pictures are not compiled")
    torch.set_num_threads(1)
    engine = Engine.load(model, may_compile=may_compile)
    texts = _texts(prompts)
    timings = time_interleaved({name: _drawing(engine, name, texts) for name in ("exact", profile)}, repeats=repeats)
    ratios = [a.wall_s / b.wall_s for a, b in zip(timings["exact"], timings[profile], strict=True)]
    drift = measure_drift(engine, profile, texts)
    judged = _judged(model, profile, processes, split) if ruler else {}
    parts = engine.components
    asked = _request(texts[0], 0, profile).resolved(parts.spec.generation)
    in_use = engine.route_of(asked)
    decoder = decoder_there(parts, asked.decoder)
    certificate = Certificate(
        profile=profile,
        definition=PROFILES[profile].definition(in_use.backend, in_use.precision),
        model=model if not Path(model).is_dir() else Path(model).resolve().name,
        model_digest=parts.digest,
        backend=in_use.backend,
        precision=in_use.precision,
        decoder=decoder,
        tiny_digest=parts.tiny_digest() if decoder == "tiny" else None,
        hardware=describe_hardware().name,
        threads=torch.get_num_threads(),
        exact_s=summarise(timings["exact"])["median_s"],
        profile_s=summarise(timings[profile])["median_s"],
        speedup=round(median(ratios), 3),
        num_prompts=len(texts),
        latent_cosine_median=round(median(drift["latent_cosine"]), 5),
        latent_cosine_min=round(min(drift["latent_cosine"]), 5),
        psnr_db_median=round(median(drift["psnr_db"]), 2),
        ssim_median=round(median(drift["ssim"]), 4),
        **judged,
        commit=git("rev-parse", "HEAD"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
    )
    keep_certificate(certificate, parts.folder if into_model else None)
    said = certificate.model_dump(exclude={"versions", "version", "commit", "finished", "runs"}, exclude_none=True)
    return Measurement(
        name=certificate.route,
        samples={
            **{f"{name}_wall_s": [one.wall_s for one in timings[name]] for name in timings},
            **{f"{name}_cpu_s": [one.cpu_s for one in timings[name]] for name in timings},
            **drift,
        },
        summary=said | ({"runs": ", ".join(certificate.runs)} if certificate.runs else {}),
        bars=tuple(_bars(certificate)),
        seeds=(SEED,),
        protocol=f"pairs of pictures in turn, one warm-up, {repeats} timed; drift over {len(texts)} prompts of "
        f"scenes-dev, each from a seed of its own; prompt-following on all of scenes-{split}, paired; Frechet "
        "distance of those pictures from 1,000 real scenes",
    )


def measure_drift(engine: Engine, profile: ProfileName, texts: list[str]) -> dict[str, list[float]]:
    """Return, for every prompt, how alike latents and picture are to those of `exact` from the same noise.

    Returns:
        `latent_cosine`, `psnr_db` and `ssim`, one value a prompt.
    """
    import torch

    from vega_diffusion.benchmarks.autoencoder import psnr_db
    from vega_diffusion.benchmarks.similarity import ssim

    found: dict[str, list[float]] = {"latent_cosine": [], "psnr_db": [], "ssim": []}
    for number, text in enumerate(texts):
        latents, images = [], []
        for name in ("exact", profile):
            request = _request(text, SEED + number, name)
            (clean,) = engine.latents(request)
            image = engine.decode(request, clean)
            latents.append(clean.float().flatten())
            images.append(image.float().clamp(-1, 1))
        found["latent_cosine"].append(float(torch.cosine_similarity(*latents, dim=0)))
        found["psnr_db"].append(min(99.0, float(psnr_db(images[1], images[0]))))
        found["ssim"].append(float(ssim(images[1], images[0])))
    return found


def _judged(model: str, profile: ProfileName, processes: int, split: Split) -> dict[str, Any]:
    """Return how prompt-following and Frechet distance change, in the certificate's fields."""
    from vega_diffusion.evaluation.compare import compare
    from vega_diffusion.evaluation.evaluate import EvaluationRequest, evaluate
    from vega_diffusion.evaluation.frechet_folder import scene_frechet
    from vega_diffusion.evaluation.workers import DrawSettings

    before, after = (
        evaluate(EvaluationRequest(model, split=split, settings=DrawSettings(profile=name), processes=processes))
        for name in ("exact", profile)
    )
    overall = compare(before.result, after.result).overall
    assert overall is not None, "both splits have prompts of all kinds"
    distances = [scene_frechet(one.folder) for one in (before, after)]
    return {
        "runs": (before.result.run, after.result.run),
        "following_split": split,
        "following_change": overall.difference,
        "following_low": overall.interval[0],
        "following_high": overall.interval[1],
        "frechet_exact": round(distances[0], 3),
        "frechet_change": round(distances[1] / distances[0] - 1, 5),
    }


def _bars(certificate: Certificate) -> list[Bar]:
    """Return the goals of a profile that has some."""
    bars, name = [], certificate.profile
    said = f"{name} ({certificate.backend} {certificate.precision})"
    if name in FOLLOWING and certificate.following_low is not None:
        low, limit = certificate.following_low, FOLLOWING[name]
        where = f"prompt-following on scenes-{certificate.following_split}, worst of its interval"
        bars.append(_bar(f"{said}: {where}", low, limit))
    if name == "balanced":
        bars.append(_bar(f"{said}: median latent cosine", certificate.latent_cosine_median, COSINE))
        if certificate.frechet_change is not None:
            what, change = f"{said}: change of the Frechet distance", abs(certificate.frechet_change)
            bars.append(Bar(what=what, measured=change, unit="of 1", limit=FRECHET, better="lower"))
    return bars


def _bar(what: str, measured: float, limit: float) -> Bar:
    return Bar(what=what, measured=measured, unit="of 1", limit=limit, better="higher")


def _texts(count: int) -> list[str]:
    from vega_diffusion.evaluation.suites import read_suite

    texts = [prompt.prompt for prompt in read_suite("scenes", "dev").prompts]
    if not 0 < count <= 2 * len(texts):
        allowed = f"1 to {2 * len(texts)}, as scenes-dev has pictures"
        raise InvalidValue("--prompts", count, allowed, "choose fewer")
    twice, rest = divmod(count, len(texts))
    # Every kind of prompt has its share: they stand in the file kind by kind. Seeds differ from picture to picture.
    return twice * texts + [texts[number * len(texts) // rest] for number in range(rest)]


def _request(text: str, seed: int, profile: str) -> GenerateRequest:
    from vega_diffusion.specs.request import GenerateRequest

    return GenerateRequest.from_dict({"prompt": text, "seed": seed, "profile": profile})


def _drawing(engine: Engine, profile: str, texts: list[str]) -> Callable[[int], None]:
    """Return what draws picture i by a profile, its prompt encoded before."""

    def draw(index: int) -> None:
        engine.generate(_request(texts[0], SEED + max(index, 0), profile))

    return draw


def _versions() -> dict[str, str]:
    found = {}
    for name in COMPUTES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
