"""Case `training-step`: samples a second of one denoising step, by precision and attention kernel."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from vega_diffusion.benchmarks.protocol import MIN_REPEATS, summarise, time_interleaved
from vega_diffusion.benchmarks.report import Measurement
from vega_diffusion.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 24  # what a caption of the scenes is padded to
SEED = 0


def measure(model: str = "vega-mini", batch: int = 64, repeats: int = MIN_REPEATS) -> Measurement:
    """Time forward and backward passes of a U-Net on one thread: fp32, bf16 with torch's attention, bf16 with ours.

    Args:
        model: A preset's name; fresh weights do, as only time is measured.
        batch: Samples of one pass.
        repeats: Timed rounds.
    """
    import torch

    torch.set_num_threads(1)
    step = make_step(model, batch)
    cases: dict[str, Callable[[int], object]] = {
        "fp32": lambda _: step("no", own_attention=False),
        "bf16_torch_attention": lambda _: step("bf16", own_attention=False),
        "bf16": lambda _: step("bf16", own_attention=True),
    }
    timings = time_interleaved(cases, repeats=repeats)
    rates = {name: round(batch / summarise(found)["median_cpu_s"], 1) for name, found in timings.items()}
    ratios = [a.cpu_s / b.cpu_s for a, b in zip(timings["fp32"], timings["bf16"], strict=True)]
    return Measurement(
        samples={f"{name}_cpu_s": [one.cpu_s for one in found] for name, found in timings.items()},
        summary={
            **{f"{name}_samples_per_cpu_s": rate for name, rate in rates.items()},
            "bf16_over_fp32": round(median(ratios), 2),
            "model": model,
            "batch": batch,
        },
        seeds=(SEED,),
        protocol=f"forward and backward pass of {batch} samples, no optimizer, one thread; cases in turn, processor "
        "seconds, medians; the ratio is the median of the rounds' own ratios",
    )


def make_step(model: str, batch: int) -> Callable[..., None]:
    """Return a function (precision, own_attention) that runs one pass and drops the gradients."""
    import torch

    from vega_diffusion.models.unet import build_unet
    from vega_diffusion.specs.presets import preset as find_preset
    from vega_diffusion.training.attention import attention_kernel

    preset = find_preset(model)
    spec, second = preset.unet, preset.text_encoder_2
    if second is None:
        raise InvalidValue("model", model, "a preset with SDXL's two text encoders", "choose another")
    torch.manual_seed(SEED)
    unet: Any = build_unet(spec)
    side = spec.sample_size
    x_t = torch.randn(batch, spec.in_channels, side, side)
    timesteps = torch.randint(0, 1000, (batch,))
    prompt_embeds = torch.randn(batch, TOKENS, spec.cross_attention_dim)
    pooled = torch.randn(batch, second.projection_dim)
    added: dict[str, Tensor] = {"text_embeds": pooled, "time_ids": torch.zeros(batch, 6)}

    def step(precision: str, own_attention: bool) -> None:
        with (
            attention_kernel(x_t.device, precision if own_attention else "no"),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            predicted = unet(x_t, timesteps, encoder_hidden_states=prompt_embeds, added_cond_kwargs=added).sample
        predicted.float().square().mean().backward()
        unet.zero_grad()

    return step
