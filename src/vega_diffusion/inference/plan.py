"""What a picture will cost before it is drawn: its steps, and their work beside the exact profile's.

Counted from the shapes alone, on the meta device; what a profile costs in likeness is in its certificate, which is told
beside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from vega_diffusion.inference.adapters import Adapters
from vega_diffusion.inference.backends.protocol import Question
from vega_diffusion.inference.backends.split import FullGraph, ShallowGraph, deep_shape
from vega_diffusion.inference.certificates import certificate_lines, find_certificate
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.lines import departs_from_certified
from vega_diffusion.inference.routes import route_ahead
from vega_diffusion.inference.samplers import make_scheduler, set_steps
from vega_diffusion.inference.start import remaining_timesteps
from vega_diffusion.inference.vae_policy import decoder_there
from vega_diffusion.models.autoencoder import build_autoencoder
from vega_diffusion.models.measure import count_macs
from vega_diffusion.models.unet import build_unet
from vega_diffusion.specs.architecture import AutoencoderSpec, UNetSpec
from vega_diffusion.specs.profile import StepPlan
from vega_diffusion.specs.request import GenerateRequest


@dataclass(frozen=True)
class PicturePlan:
    """The work of one picture.

    Attributes:
        profile: By which it would be drawn.
        num_steps: U-Net evaluations.
        guided_steps: Those that also ask about the negative prompt.
        deep_steps: Those that compute the deep layers.
        shallow_share: What an evaluation without deep layers costs of one with them.
        unet_gmac: Of all evaluations.
        decoder_gmac: Of the autoencoder; None where the tiny one decodes.
        exact_gmac: Of U-Net and autoencoder in the profile `exact`, same steps.
    """

    profile: str
    num_steps: int
    guided_steps: int
    deep_steps: int
    shallow_share: float
    unet_gmac: float
    decoder_gmac: float | None
    exact_gmac: float

    @property
    def work_ratio(self) -> float:
        """How many times less work than `exact`, precision aside."""
        return self.exact_gmac / (self.unet_gmac + (self.decoder_gmac or 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"work_ratio": round(self.work_ratio, 3)}

    def __str__(self) -> str:
        decoder = "the tiny one" if self.decoder_gmac is None else f"{self.decoder_gmac:,.2f} GMAC"
        return "\n".join(
            [
                f"profile   {self.profile}",
                f"steps     {self.num_steps}: {self.guided_steps} guided, {self.deep_steps} with deep layers; one "
                f"without costs {100 * self.shallow_share:.1f} % of one with them",
                f"U-Net     {self.unet_gmac:,.2f} GMAC",
                f"decoder   {decoder}",
                f"exact     {self.exact_gmac:,.2f} GMAC: {self.work_ratio:.2f} times the work of this",
            ]
        )


def plan_picture(
    components: Components, request: GenerateRequest, init_size: tuple[int, int] | None = None
) -> PicturePlan:
    """Return what a request's picture costs; one that starts from a picture runs fewer steps, which are counted.

    Args:
        components: The model.
        request: What would be drawn.
        init_size: (width, height) of the picture that it starts from, in pixels, when there is one.

    Raises:
        VegaError: The request does not suit the model.
    """
    spec = components.spec
    resolved = request.resolved(spec.generation, init_size)
    assert resolved.width and resolved.height and resolved.num_steps, "a resolved request"
    assert resolved.sampler is not None, "a resolved request"
    scheduler = make_scheduler(resolved.sampler, components.scheduler_config)
    set_steps(scheduler, resolved.sampler, resolved.num_steps, "cpu")
    steps = len(remaining_timesteps(scheduler, resolved.num_steps, resolved.strength))
    down = spec.autoencoder.downscale
    cells = resolved.height // down, resolved.width // down
    deep, shallow = unet_depths(spec.unet.to_json(), *cells)
    guidance = (resolved.guidance_scale or 0.0) > 1 and spec.unet.time_cond_proj_dim is None
    plan = StepPlan.of(steps, resolved.guidance_interval or (0.0, 1.0), resolved.reuse or 1, guidance)
    whole = StepPlan.of(steps, (0.0, 1.0), 1, guidance)
    decoder = decoder_macs(spec.autoencoder.to_json(), *cells) / 1e9
    found = PicturePlan(
        profile=resolved.profile or "exact",
        num_steps=steps,
        guided_steps=sum(plan.guided),
        deep_steps=sum(plan.deep),
        shallow_share=round(shallow / deep, 4),
        unet_gmac=plan.cost(shallow / deep) * deep / 1e9,
        decoder_gmac=decoder,
        exact_gmac=whole.cost(1.0) * deep / 1e9 + decoder,
    )
    is_tiny = decoder_there(components, resolved.decoder) == "tiny"
    return replace(found, decoder_gmac=None) if is_tiny else found


def known_of_profile(
    components: Components, request: GenerateRequest, init_size: tuple[int, int] | None = None
) -> tuple[str, ...]:
    """Return the lines of the certificate that holds for a request, or the line that there is none; none for `exact`.

    Args:
        components: The model; its weights are hashed, not loaded.
        request: What would be drawn.
        init_size: As above.

    Raises:
        VegaError: The request does not suit the model, or a LoRA cannot be read.
    """
    resolved = request.resolved(components.spec.generation, init_size)
    profile, lines = resolved.profile or "exact", list[str]()
    if profile == "exact":
        return ()
    loras = Adapters(components).load(resolved.loras)
    say = lambda line: lines.append(f"profile {profile}: {line}")  # noqa: E731
    backend, precision = route_ahead(components, resolved.drawn_by, loras, say)
    decoder, tiny = decoder_there(components, resolved.decoder), components.tiny_digest()
    found = find_certificate(components.folder, components.digest, profile, backend, precision, decoder, tiny)
    departs = resolved.departs(components.spec.generation)
    if found is not None and departs:
        return (*lines, departs_from_certified(profile, departs))
    said = () if found is None else str(found).splitlines()
    return (*lines, *said, *certificate_lines(found, profile, backend, precision, components.name))


# By text, since specs hold no hash.
@lru_cache(maxsize=16)
def unet_depths(spec_json: str, height: int, width: int) -> tuple[int, int]:
    """Return the MACs of one row's evaluation with deep layers and without, at latents of this size."""
    spec = UNetSpec.from_json(spec_json)
    with torch.device("meta"):
        unet = build_unet(spec).eval()
        question = example_question(spec, 1, height, width)
        deep = torch.zeros(deep_shape(unet, question, 0))
        named = question.named()
        return count_macs(FullGraph(unet, 0), **named), count_macs(ShallowGraph(unet, 0), **named, deep=deep)


@lru_cache(maxsize=16)
def decoder_macs(spec_json: str, height: int, width: int) -> int:
    """Return the MACs of decoding latents of this size by the full autoencoder."""
    spec = AutoencoderSpec.from_json(spec_json)
    with torch.device("meta"):
        vae: Any = build_autoencoder(spec)
        return count_macs(_Decode(vae), torch.zeros(1, spec.latent_channels, height, width))


def example_question(spec: UNetSpec, rows: int, height: int, width: int, tokens: int = 77) -> Question:
    """Return a question of the right shapes without values, on the current device."""
    pooled = None
    if spec.addition_embed_type == "text_time":
        pooled = (spec.projection_class_embeddings_input_dim or 0) - 6 * (spec.addition_time_embed_dim or 0)
    return Question(
        torch.zeros(rows, spec.in_channels, height, width),
        torch.zeros(rows),
        torch.zeros(rows, tokens, spec.cross_attention_dim),
        None if pooled is None else torch.zeros(rows, pooled),
        None if pooled is None else torch.zeros(rows, 6),
        None if spec.time_cond_proj_dim is None else torch.zeros(rows, spec.time_cond_proj_dim),
    )


class _Decode(torch.nn.Module):
    """An autoencoder whose forward decodes."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode."""
        return self.vae.decode(latents, return_dict=False)[0]
