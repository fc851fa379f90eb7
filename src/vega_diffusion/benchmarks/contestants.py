"""What is timed against one another at full size: U-Nets and decoders of any model in any backend, ready to be called.

Weights are random unless a folder is named. `torch` is diffusers' own U-Net, called as its pipelines call it;
`openvino-plain` is that U-Net as `openvino.convert_model` takes it, with nothing of ours. On a GPU `torch-compiled` is
compiled by regions, as diffusers does it, and `torch-graphs` whole, channels last, with CUDA graphs.
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
GRAPHS = "torch-graphs"
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
    """A contestant that can be timed; a call has ended when its device has.

    Attributes:
        evaluate: One U-Net evaluation.
        decode: One picture decoded, where asked for.
        in_use: Says what really ran, once it has.
    """

    evaluate: Callable[[], object]
    decode: Callable[[], object] | None
    in_use: Callable[[], str]


def open_contestant(
    one: Contestant, size_px: int, rows: int, threads: int, decoder: DecoderChoice = "none", device: str = "cpu"
) -> Ready:
    """Return a contestant, ready.

    Args:
        one: Which.
        size_px: Side of the picture, px.
        rows: Of one evaluation.
        threads: Of OpenVINO; torch's are the process's.
        decoder: Which autoencoder decodes beside it, with fresh weights.
        device: Where torch runs.

    Raises:
        InvalidValue: OpenVINO on a GPU, or CUDA graphs on a CPU.
    """
    import torch

    from vega_diffusion.inference.backends.torch_eager import PRECISIONS
    from vega_diffusion.inference.components import choose_dtype

    if device != "cpu" and one.backend.startswith("openvino"):
        raise InvalidValue("contestants", str(one), f"torch backends on {device}", "time OpenVINO with --device cpu")
    spec, digest, build = _model(one.model, device)
    with torch.device("meta"):
        count = sum(p.numel() for p in _built(spec).parameters())
    own = PRECISIONS[choose_dtype("auto", torch.device(device), count)]
    precision: Any = own if one.precision == "own" else one.precision
    on_openvino = one.backend.startswith("openvino")
    dtype = torch.float32 if on_openvino else {text: dtype for dtype, text in PRECISIONS.items()}[precision]
    question = random_question(spec, size_px // spec.autoencoder.downscale, rows)
    decode = _decoder(one.backend, precision, dtype, spec, size_px, threads, decoder, device)
    if one.backend == PLAIN:
        from vega_diffusion.benchmarks.openvino_plain import PlainUNet

        plain = PlainUNet(build(torch.float32), question, precision, threads)
        return Ready(plain.evaluate, decode, lambda: f"{PLAIN} {plain.precision_in_use()}")
    denoiser = _denoiser(one, precision, digest, build(dtype), question, threads)
    asked = question if on_openvino else question.mapped(partial(_narrowed, dtype, device))
    evaluate = _ended(partial(denoiser.predict, asked), device)
    beside = "" if device == "cpu" else f" on {device}"
    return Ready(evaluate, decode and _ended(decode, device), lambda: _told(denoiser.in_use) + beside)


def _ended(call: Callable[[], object], device: str) -> Callable[[], object]:
    """Return a call that waits for what it began on a GPU."""
    if not device.startswith("cuda"):
        return call

    def waiting() -> object:
        import torch

        answer = call()
        torch.cuda.synchronize()
        return answer

    return waiting


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

    if one.backend == GRAPHS:
        from vega_diffusion.inference.backends.torch_compiled import TorchCompiled

        return TorchCompiled(lambda: network, channels_last=True, cuda_graphs=True)
    rule = QuantisationRule(num_samples=CALIBRATION, num_probes=0)
    samples = [question.rows(0, 1) for _ in range(CALIBRATION)]
    opening = Opening(say=_say, num_threads=threads, may_fall_back=False, rule=rule, keep_blobs=False)
    route = Route(one.backend, precision)  # type: ignore[arg-type]
    return open_denoiser(route, Weights(digest, lambda: network), opening, questions=lambda: samples)


def _decoder(
    backend: str,
    precision: Any,
    dtype: Any,
    spec: ModelSpec,
    size_px: int,
    threads: int,
    choice: DecoderChoice,
    device: str,
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
        return partial(_decoded, network.to(device), latents.to(device))
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


def _narrowed(dtype: Any, device: str, tensor: Any) -> Any:
    return tensor.to(device, dtype if tensor.ndim > 1 else tensor.dtype)


def model_of(name: str) -> ModelSpec:
    """Return the spec of a preset or of a model folder."""
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.specs.presets import PRESETS, preset

    folder = Path(name).expanduser()
    return preset(name) if name in PRESETS or not folder.is_dir() else load_spec(folder)


def _model(name: str, device: str = "cpu") -> tuple[ModelSpec, str, Callable[[Any], Any]]:
    """Return a model's spec, what names its weights, and what builds its U-Net in a dtype."""
    import torch

    from vega_diffusion.models.checkpoint import load_unet
    from vega_diffusion.models.digest import model_digest
    from vega_diffusion.specs.presets import PRESETS

    spec, folder = model_of(name), Path(name).expanduser()
    if name in PRESETS or not folder.is_dir():
        return spec, f"random-{name}-seed-0", partial(_random, spec, device)

    def read(dtype: Any) -> Any:
        network: Any = load_unet(folder, spec.unet, dtype).eval().requires_grad_(False)
        return network.to(device)

    return spec, model_digest(folder, torch.float32), read


def _built(spec: ModelSpec) -> Any:
    from vega_diffusion.models.unet import build_unet

    return build_unet(spec.unet)


def _random(spec: ModelSpec, device: str, dtype: Any) -> Any:
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):  # where billions of numbers are drawn in a second, or in a minute
            return _built(spec).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)


def _told(in_use: Any) -> str:
    return f"{in_use.backend} {in_use.precision}{' compiled' if in_use.is_compiled else ''}"


def _say(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)
