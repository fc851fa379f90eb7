"""What is timed against one another at full size: U-Nets and decoders of any model in any backend, ready to be called.

Weights are random unless a folder is named. `torch` is diffusers' own U-Net, called as its pipelines call it;
`openvino-plain` is that U-Net as `openvino.convert_model` takes it, with nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vega_diffusion.errors import InvalidValue

if TYPE_CHECKING:
    from vega_diffusion.inference.backends.protocol import Question
    from vega_diffusion.specs.architecture import ModelSpec

DecoderChoice = Literal["none", "tiny", "full"]
PLAIN = "openvino-plain"
CALIBRATION = 2  # random weights have no quality that more samples could save


@dataclass(frozen=True)
class Contestant:
    """A model in a backend, as "vega:torch:fp32"; `own` is the dtype that the engine would choose here."""

    model: str
    backend: str
    precision: str

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """Read "MODEL", "MODEL:BACKEND" or "MODEL:BACKEND:PRECISION".

        Raises:
            InvalidValue: It has more parts.
        """
        given = text.split(":")
        if len(given) > 3 or not all(given):
            raise InvalidValue("contestants", text, "MODEL:BACKEND:PRECISION, as vega:openvino:int8", "write it so")
        return cls(*given, *("torch", "own")[len(given) - 1 :])

    def __str__(self) -> str:
        return f"{self.model}:{self.backend}:{self.precision}"


@dataclass(frozen=True)
class Ready:
    """A contestant that can be timed.

    Attributes:
        evaluate: One U-Net evaluation.
        decode: One picture decoded, where asked for.
        in_use: Says what really ran, once it has.
    """

    evaluate: Callable[[], object]
    decode: Callable[[], object] | None
    in_use: Callable[[], str]


def open_contestant(one: Contestant, size_px: int, rows: int, threads: int, decoder: DecoderChoice = "none") -> Ready:
    """Return a contestant, ready.

    Args:
        one: Which.
        size_px: Side of the picture, px.
        rows: Of one evaluation.
        threads: Of OpenVINO; torch's are the process's.
        decoder: Which autoencoder decodes beside it, with fresh weights.
    """
    import torch

    from vega_diffusion.inference.backends.torch_eager import PRECISIONS
    from vega_diffusion.inference.components import choose_dtype

    spec, digest, build = _model(one.model)
    with torch.device("meta"):
        count = sum(p.numel() for p in _built(spec).parameters())
    own = PRECISIONS[choose_dtype("auto", torch.device("cpu"), count)]
    precision: Any = own if one.precision == "own" else one.precision
    on_openvino = one.backend.startswith("openvino")
    dtype = torch.float32 if on_openvino else {text: dtype for dtype, text in PRECISIONS.items()}[precision]
    question = random_question(spec, size_px // spec.autoencoder.downscale, rows)
    decode = _decoder(one.backend, precision, dtype, spec, size_px, threads, decoder)
    if one.backend == PLAIN:
        from vega_diffusion.benchmarks.openvino_plain import PlainUNet

        plain = PlainUNet(build(torch.float32), question, precision, threads)
        return Ready(plain.evaluate, decode, lambda: f"{PLAIN} {plain.precision_in_use()}")
    denoiser = _denoiser(one, precision, digest, build(dtype), question, threads)
    asked = question if on_openvino else question.mapped(partial(_narrowed, dtype))
    return Ready(partial(denoiser.predict, asked), decode, lambda: _told(denoiser.in_use))


def random_question(spec: ModelSpec, side: int, rows: int) -> Question:
    """Return a question of random numbers for a U-Net, float32."""
    import torch

    from vega_diffusion.inference.plan import example_question

    generator = torch.Generator().manual_seed(0)

    def filled(tensor: Any) -> Any:
        if tensor.ndim == 1:
            return torch.full_like(tensor, 500.0)
        return torch.randn(tensor.shape, generator=generator)

    return example_question(spec.unet, rows, side, side).mapped(filled)


def _denoiser(one: Contestant, precision: Any, digest: str, network: Any, question: Question, threads: int) -> Any:
    from vega_diffusion.inference.backends.faults import Route
    from vega_diffusion.inference.backends.open import Opening, Weights, open_denoiser
    from vega_diffusion.inference.backends.quantise_rule import QuantisationRule

    rule = QuantisationRule(num_samples=CALIBRATION, num_probes=0)
    samples = [question.rows(0, 1) for _ in range(CALIBRATION)]
    opening = Opening(say=_say, num_threads=threads, may_fall_back=False, rule=rule, keep_blobs=False)
    route = Route(one.backend, precision)  # type: ignore[arg-type]
    return open_denoiser(route, Weights(digest, lambda: network), opening, questions=lambda: samples)


def _decoder(
    backend: str, precision: Any, dtype: Any, spec: ModelSpec, size_px: int, threads: int, choice: DecoderChoice
) -> Callable[[], object] | None:
    """Return what decodes one picture in a contestant's backend; 8-bit U-Nets have their decoder in bf16 or fp32."""
    if choice == "none":
        return None
    import torch

    from vega_diffusion.models.autoencoder import build_autoencoder, build_tiny_autoencoder
    from vega_diffusion.specs.tiny_autoencoder import tiny_autoencoder_of

    torch.manual_seed(0)
    full = spec.autoencoder
    network: Any = build_autoencoder(full) if choice == "full" else build_tiny_autoencoder(tiny_autoencoder_of(spec))
    network = network.to(dtype).eval().requires_grad_(False)
    side = size_px // full.downscale
    latents = torch.randn(1, full.latent_channels, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)
    if not backend.startswith("openvino"):
        return partial(_decoded, network, latents)
    from vega_diffusion.inference.backends.open import Opening, Weights, open_decoder
    from vega_diffusion.inference.backends.openvino_runtime import cpu_features

    wide = "bf16" if precision != "fp32" and cpu_features().bf16 else "fp32"
    opening = Opening(say=_say, num_threads=threads, may_fall_back=False, keep_blobs=False)
    digest = f"random-{choice}-{spec.family}-seed-0"
    return partial(open_decoder(wide, Weights(digest, lambda: network), opening).decode, latents)


def _decoded(vae: Any, latents: Any) -> Any:
    import torch

    with torch.inference_mode():
        return vae.decode(latents, return_dict=False)[0]


def _narrowed(dtype: Any, tensor: Any) -> Any:
    return tensor.to(dtype) if tensor.ndim > 1 else tensor


def _model(name: str) -> tuple[ModelSpec, str, Callable[[Any], Any]]:
    """Return a model's spec, what names its weights, and what builds its U-Net in a dtype."""
    import torch

    from vega_diffusion.models.checkpoint import load_unet
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.models.digest import model_digest
    from vega_diffusion.specs.presets import PRESETS, preset

    folder = Path(name).expanduser()
    if name in PRESETS or not folder.is_dir():
        spec = preset(name)
        return spec, f"random-{name}-seed-0", partial(_random, spec)
    spec = load_spec(folder)
    return (
        spec,
        model_digest(folder, torch.float32),
        lambda dtype: load_unet(folder, spec.unet, dtype).eval().requires_grad_(False),
    )


def _built(spec: ModelSpec) -> Any:
    from vega_diffusion.models.unet import build_unet

    return build_unet(spec.unet)


def _random(spec: ModelSpec, dtype: Any) -> Any:
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        return _built(spec).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)


def _told(in_use: Any) -> str:
    return f"{in_use.backend} {in_use.precision}{' compiled' if in_use.is_compiled else ''}"


def _say(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)
