"""Case `vae`: what tiny and 8-bit decoders save and what they lose, and that no decoder gives a picture of NaN.

Full-size weights are random: they serve seconds alone, and show nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks import openvino_decoders
from vega_diffusion.benchmarks.autoencoder import psnr_db
from vega_diffusion.benchmarks.protocol import MIN_REPEATS, Timing, summarise, time_interleaved
from vega_diffusion.benchmarks.reconstructions import as_file
from vega_diffusion.benchmarks.report import Bar, Measurement
from vega_diffusion.benchmarks.similarity import ssim
from vega_diffusion.errors import VegaError
from vega_diffusion.inference.backends.quantise_rule import DECODER_RULE

if TYPE_CHECKING:
    from torch import Tensor

# No recipe draws its scenes from this seed.
SEED = 900_004
CALIBRATION_SEED = 900_005
BATCH = 16
DTYPES = ("float32", "bfloat16", "float16")
# Where a processor does not multiply in a precision, a decoding takes seconds: so many times fewer latents must do.
FEWER = 50
# A picture of the mini family takes milliseconds, which the clock and other processes would drown one by one.
DECODES = 8


def measure(
    model: str = "vega-mini",
    num_scenes: int = 256,
    num_random: int = 1000,
    size_px: int = 512,
    repeats: int = MIN_REPEATS,
    icons: str | None = None,
    threads: int = 1,
) -> Measurement:
    """Time decoders in turn, compare their pictures of fresh scenes, and decode random latents.

    Those of OpenVINO take part where it is installed.

    Args:
        model: A name or a folder, with a `vae_tiny`.
        num_scenes: Scenes, each with at least one combination of things that training never shows.
        num_random: Random latents for each decoder and precision that the processor multiplies in; others get a
            fiftieth.
        size_px: Side of the pictures of the full-size decoders (SDXL's and TAESDXL's shape, random weights).
        repeats: Timed rounds.
        icons: Folder that `vega data icons` filled; None takes the sample in the package.
        threads: Torch threads.

    Raises:
        VegaError: The model has no tiny autoencoder.
    """
    import torch

    from vega_diffusion.training.sources import load_atlas

    torch.set_num_threads(threads)
    full, tiny = decoders(model, "float32")
    timings = {f"mini_{name}": found for name, found in time_mini(full, tiny, repeats).items()}
    timings |= {f"{size_px}px_{name}": found for name, found in time_full_size(size_px, repeats, threads).items()}
    work = {name: decoder_flops(vae, 16) for name, vae in (("full", full), ("tiny", tiny))}
    alike = compare(full, tiny, num_scenes, icons)
    if openvino_decoders.is_installed():
        alike["8_bit_psnr_db"] = compare_8_bits(full, num_scenes, icons)
    bad, again, tried = random_latents(model, num_random)
    summary: dict[str, float | int | str] = {
        f"{name}_{key}": value for name, found in timings.items() for key, value in summarise(found).items()
    }
    summary |= {f"mean_{name}": round(fmean(values), 4) for name, values in alike.items()}
    summary |= {"first_decile_psnr_db": round(quantiles(alike["psnr_db"], n=10)[0], 3)}
    summary |= {f"mini_{name}_decoder_gflop": round(value / 1e9, 4) for name, value in work.items()}
    summary |= {f"not_finite_{name}": value for name, value in bad.items()}
    summary |= {f"run_again_in_float32_{name}": value for name, value in again.items()}
    summary |= {f"random_latents_{name}": value for name, value in tried.items()}
    summary |= {
        "num_scenes": num_scenes,
        "num_random": num_random,
        "model": model,
        "icons": load_atlas(icons)[1] if icons else "sample",
    }
    summary |= {"full_size_weights": "random", "size_px": size_px}
    times_faster = speedups(timings, size_px)
    work_ratio = round(work["full"] / work["tiny"], 2)
    return Measurement(
        samples={f"{name}_cpu_s": [one.cpu_s for one in found] for name, found in timings.items()}
        | {f"{name}_wall_s": [one.wall_s for one in found] for name, found in timings.items()}
        | {name: [round(value, 4) for value in values] for name, values in alike.items()},
        summary=summary | times_faster,
        bars=make_bars(times_faster, work_ratio, {k: fmean(v) for k, v in alike.items()}, sum(bad.values()), size_px),
        seeds=(SEED,),
        protocol="decoders in turn, one warm-up, processor seconds; ratios are medians over pairs of a round; quality "
        "of pictures decoded from the mode of the posterior of held-out scenes, 8-bit levels, float32; random latents "
        "are standard normal in the U-Net's scale, one picture a call",
    )


def decoders(model: str, dtype: str) -> tuple[Any, Any]:
    """Return a model's full and tiny autoencoders in a precision; the full one not in float32 where it is asked not to.

    Raises:
        VegaError: There is no tiny one.
    """
    from vega_diffusion.inference.components import Components

    parts = Components.open(model, "cpu", dtype, False)
    tiny = parts.tiny_vae()
    if tiny is None:
        raise VegaError(f"vae: model {model!r} has no vae_tiny; allowed: a model with one; put one beside it")
    return parts.vae(), tiny


def decoder_flops(vae: Any, cells: int) -> int:
    """Return the floating-point operations (two a multiply-accumulate) of one decoding of cells x cells latents."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    latents = torch.zeros(1, vae.config["latent_channels"], cells, cells, dtype=vae.dtype)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        vae.decode(latents)
    return counter.get_total_flops()


def time_mini(full: Any, tiny: Any, repeats: int) -> dict[str, list[Timing]]:
    """Time `DECODES` pictures of 16 x 16 latents a round with each decoder."""
    import torch

    latents = torch.randn(1, full.config["latent_channels"], 16, 16, generator=torch.Generator().manual_seed(SEED))

    def run(vae: Any) -> Callable[[int], None]:
        def decode(_: int) -> None:
            with torch.inference_mode():
                for _ in range(DECODES):
                    vae.decode(latents)

        return decode

    return time_interleaved({"full": run(full), "tiny": run(tiny)}, repeats=repeats)


def time_full_size(size_px: int, repeats: int, threads: int) -> dict[str, list[Timing]]:
    """Time decoders of SDXL's and TAESDXL's shape with random weights, laid out as diffusers does and channels last.

    bfloat16 is timed where the processor multiplies in it; elsewhere it is many times slower than float32. OpenVINO's,
    where it is installed, run as they do beside a U-Net in bf16 (or fp32) and in int8.
    """
    import torch

    from vega_diffusion.models.autoencoder import build_autoencoder, build_tiny_autoencoder
    from vega_diffusion.specs.architecture import AutoencoderSpec
    from vega_diffusion.specs.tiny_autoencoder import TAESD

    torch.manual_seed(SEED)
    shapes: dict[str, Callable[[], Any]] = {
        "full": lambda: build_autoencoder(AutoencoderSpec()),
        "tiny": lambda: build_tiny_autoencoder(TAESD),
    }
    dtypes = [torch.float32, *([torch.bfloat16] if multiplies_in("bfloat16") else [])]
    cases: dict[str, Callable[[int], None]] = {}
    for name, build in shapes.items():
        for dtype in dtypes:
            for layout in (torch.contiguous_format, torch.channels_last):
                vae = build().eval().requires_grad_(False).to(memory_format=layout)
                vae = vae if dtype == torch.float32 else vae.to(dtype)
                vae.encoder = None  # half the memory
                latents = torch.randn(1, 4, size_px // 8, size_px // 8).to(dtype=dtype, memory_format=layout)
                tail = "_channels_last" if layout is torch.channels_last else ""
                cases[f"{name}_{str(dtype).removeprefix('torch.')}{tail}"] = _decoding(vae, latents)
    return time_interleaved(cases | _openvino_cases(shapes, size_px, threads), repeats=repeats)


def _openvino_cases(
    shapes: dict[str, Callable[[], Any]], size_px: int, threads: int
) -> dict[str, Callable[[int], object]]:
    """Return decodings by OpenVINO, of the same shapes; none where it is not installed."""
    if not openvino_decoders.is_installed():
        return {}
    import torch

    from vega_diffusion.inference.backends.open import decoder_beside, precision_beside

    latents = torch.randn(1, 4, size_px // 8, size_px // 8)
    cases: dict[str, Callable[[int], object]] = {}

    def add(what: Any, name: str, precision: Any) -> None:
        torch.manual_seed(SEED)
        vae = shapes[name]().eval().requires_grad_(False)
        digest = f"random-{name}-seed-{SEED}"
        decode = openvino_decoders.random_decoder(what, precision, vae, digest, latents, threads)
        cases[f"{name}_openvino_{precision}"] = lambda _: decode()

    wide = precision_beside("int8")
    add("vae-decoder", "full", wide)
    add("vae-decoder", "full", decoder_beside("int8"))
    add("tiny-vae-decoder", "tiny", wide)
    return cases


def _decoding(vae: Any, latents: Tensor) -> Callable[[int], None]:
    import torch

    def decode(_: int) -> None:
        with torch.inference_mode():
            vae.decode(latents)

    return decode


def multiplies_in(dtype: str) -> bool:
    """Return whether torch's convolutions run in a precision on this processor without a detour."""
    import torch

    match dtype:
        case "bfloat16":
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case "float16":
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
        case _:
            return True


def speedups(timings: dict[str, list[Timing]], size_px: int) -> dict[str, float]:
    """Return how many times faster each way is than the full decoder as diffusers runs it by default, of its size."""
    found = {}
    for name in timings:
        default = "mini_full" if name.startswith("mini_") else f"{size_px}px_full_float32"
        if name != default:
            pairs = zip(timings[default], timings[name], strict=True)
            found[f"{name}_speedup"] = round(median(slow.cpu_s / fast.cpu_s for slow, fast in pairs), 2)
    return found


def make_bars(
    times_faster: dict[str, float], work_ratio: float, means: dict[str, float], not_finite: int, size_px: int
) -> tuple[Bar, ...]:
    """Return the goals; that of the full decoder's speed is met or missed by the best way here to decode the same."""
    bars = [
        Bar(
            what="mini family, work of the full decoder over the tiny one's",
            measured=work_ratio,
            unit="times",
            limit=8.0,
            better="higher",
        ),
        Bar(
            what="mini family, tiny decoder's pictures against the full one's, fresh scenes",
            measured=round(means["psnr_db"], 3),
            unit="dB PSNR",
            limit=24.0,
            better="higher",
        ),
        Bar(
            what="pictures that are not finite, of random latents in every precision",
            measured=not_finite,
            unit="pictures",
            limit=0.0,
            better="lower",
        ),
    ]
    if "8_bit_psnr_db" in means:
        what = "mini family, full decoder in 8 bits against float32, fresh scenes"
        psnr = round(means["8_bit_psnr_db"], 3)
        bars.append(Bar(what=what, measured=psnr, unit="dB PSNR", limit=40.0, better="higher"))
    full = f"{size_px}px_full_"
    ways = {name: value for name, value in times_faster.items() if name.startswith(full)}
    if ways:
        best = max(ways, key=lambda name: ways[name])
        way = best.removeprefix(full).removesuffix("_speedup").replace("_", " ")
        what = f"SDXL's decoder (random weights), {size_px} px: {way} over diffusers' float32"
        bars.insert(0, Bar(what=what, measured=ways[best], unit="times", limit=2.4, better="higher"))
    return tuple(bars)


def compare(full: Any, tiny: Any, num_scenes: int, icons: str | None) -> dict[str, list[float]]:
    """Return PSNR and SSIM of the tiny decoder's pictures to the full one's, and of both to the scenes.

    Returns:
        Name -> one value a scene: `psnr_db`, `ssim`, and `tiny_psnr_db`, `full_psnr_db` to the scene itself.
    """
    found: dict[str, list[float]] = {"psnr_db": [], "ssim": [], "tiny_psnr_db": [], "full_psnr_db": []}
    for pixels, latents in _scenes(full, SEED, num_scenes, icons):
        shown, drafts = (_pictures(vae, latents) for vae in (full, tiny))
        found["psnr_db"] += psnr_db(drafts, shown).tolist()
        found["ssim"] += ssim(drafts, shown).tolist()
        found["tiny_psnr_db"] += psnr_db(drafts, pixels).tolist()
        found["full_psnr_db"] += psnr_db(shown, pixels).tolist()
    return found


def compare_8_bits(full: Any, num_scenes: int, icons: str | None) -> list[float]:
    """Return the PSNR of every scene's picture by the full decoder in 8 bits to its own in float32.

    It is calibrated on other scenes.
    """
    from vega_diffusion.inference.openvino_parts import OpenVinoVae
    from vega_diffusion.inference.pictures import unscaled

    with tempfile.TemporaryDirectory() as home:
        (_, latents), *_ = _scenes(full, CALIBRATION_SEED, DECODER_RULE.num_samples, icons)
        samples = [unscaled(full, row) for row in latents.split(1)]
        decoder = openvino_decoders.eight_bit_decoder(full, samples, DECODER_RULE, Path(home))
        narrow = OpenVinoVae(decoder, full.config)
        found: list[float] = []
        for _, latents in _scenes(full, SEED, num_scenes, icons):
            found += psnr_db(_pictures(narrow, latents), _pictures(full, latents)).tolist()
        assert decoder.in_use.precision == "int8", decoder.in_use
    return found


def _scenes(full: Any, seed: int, count: int, icons: str | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of fresh scenes: pixels, and the mode of their posterior in the U-Net's scale."""
    import torch

    from vega_diffusion.data.scenes.atlas import SpriteAtlas
    from vega_diffusion.data.scenes.grammar import sample_scene
    from vega_diffusion.data.scenes.renderer import SceneRenderer

    renderer = SceneRenderer(SpriteAtlas.load(Path(icons) if icons else None))
    for first in range(0, count, BATCH):
        positions = range(first, min(first + BATCH, count))
        pixels = renderer.render([sample_scene(seed, position, split="held-out") for position in positions])
        with torch.inference_mode():
            yield pixels, full.encode(pixels).latent_dist.mode() * full.config["scaling_factor"]


def _pictures(vae: Any, latents: Tensor) -> Tensor:
    """Return latents decoded one by one, in 8-bit levels."""
    import torch

    from vega_diffusion.inference.pictures import decode_latents

    return as_file(torch.cat([decode_latents(vae, row)[0] for row in latents.split(1)]))


def random_latents(model: str, count: int) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Decode random latents in every precision by both decoders, on the road that pictures take.

    Returns:
        By decoder and precision: how many pictures are not finite, how many had to run again in float32, and how many
        there were.
    """
    bad: dict[str, int] = {}
    again: dict[str, int] = {}
    tried: dict[str, int] = {}
    for dtype in DTYPES:
        for name, vae in zip(("full", "tiny"), decoders(model, dtype), strict=True):
            case = f"{name}_{dtype}"
            tried[case] = count if multiplies_in(dtype) else -(-count // FEWER)
            bad[case], again[case] = _tried_in(vae, dtype, tried[case])
    return bad, again, tried


def _tried_in(vae: Any, dtype: str, count: int) -> tuple[int, int]:
    """Return how many of so many random pictures are not finite in a precision, and how many ran again in float32."""
    import torch

    from vega_diffusion.inference.pictures import decode_latents

    # A config may ask for float32 in place of float16; here every precision is tried.
    vae = vae if vae.dtype == getattr(torch, dtype) else vae.to(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(SEED)
    bad = again = 0
    for _ in range(count):
        latents = torch.randn(1, vae.config["latent_channels"], 16, 16, generator=generator).to(vae.dtype)
        try:
            image, warnings = decode_latents(vae, latents)
        except VegaError:  # not even in float32
            bad += 1
        else:
            bad += not bool(torch.isfinite(image).all())
            again += bool(warnings)
    return bad, again
