"""What is timed against one another at full size: U-Nets and decoders of any model in any backend, ready to be called.

Weights are random unless a folder is named. `torch` is diffusers' own U-Net, called as its pipelines call it;
`openvino-plain` is that U-Net as `openvino.convert_model` takes it, with nothing of ours; `stable-diffusion.cpp` is
that program by its Python binding. On a GPU `torch-compiled` is
compiled by regions, as diffusers does it, and `torch-graphs` whole, channels last, with CUDA graphs. A model with a
profile is asked what the profile's steps ask of it: one row or two, deep or shallow layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from vega_diffusion.benchmarks.cpp_peer import CPP, CppUNet
from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.presets import PRESETS
from vega_diffusion.specs.profile import PROFILES, StepPlan

if TYPE_CHECKING:
    from vega_diffusion.inference.backends.open import Weights
    from vega_diffusion.inference.backends.protocol import Precision, Question
    from vega_diffusion.specs.architecture import ModelSpec

DecoderChoice = Literal["none", "tiny", "full"]
PLAIN = "openvino-plain"
GRAPHS = "torch-graphs"
WIDE_T = 900.0  # of a step that int8 leaves to wide numbers


@dataclass(frozen=True)
class Contestant:
    """A model in a backend, as "vega:torch:fp32", or in a profile, as "vega@turbo"; with "+tiny" the decoder beside it.

    Attributes:
        model: A preset (random weights) or a folder.
        backend: With a profile, that of its first route that this machine has.
        precision: `own` is the dtype that the engine would choose here.
        profile: Its name, or None.
        decoder: Its own, whatever the others have; None: as the others, or as its profile says.
    """

    model: str
    backend: str = "torch"
    precision: str = "own"
    profile: str | None = None
    decoder: DecoderChoice | None = None

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """Read "MODEL", "MODEL:BACKEND", "MODEL:BACKEND:PRECISION" or "MODEL@PROFILE", each perhaps with "+DECODER".

        Raises:
            InvalidValue: It is none of these.
        """
        named, plus, decoder = text.partition("+")
        wrong = InvalidValue(
            "contestants", text, "MODEL:BACKEND:PRECISION or MODEL@PROFILE, +tiny or +full after it", "write it so"
        )
        if plus and decoder not in ("tiny", "full"):
            raise wrong
        own = cast("DecoderChoice", decoder) if plus else None
        model, at, profile = named.partition("@")
        if at:
            if not model or profile not in PROFILES:
                raise wrong
            return cls(model, profile=profile, decoder=own)
        model, backend, precision, *rest = *named.split(":"), *("torch", "own")[named.count(":") :]
        if rest or not (model and backend and precision):
            raise wrong
        return cls(model, backend, precision, decoder=own)

    def __str__(self) -> str:
        name = f"{self.model}@{self.profile}" if self.profile else f"{self.model}:{self.backend}:{self.precision}"
        return name if self.decoder is None else f"{name}+{self.decoder}"


class Evaluation(NamedTuple):
    """One way to ask a U-Net: how many rows, whether its deep layers are computed or taken from before, how noisy."""

    rows: int
    is_deep: bool
    timestep: float = 500.0

    def __str__(self) -> str:
        noisy = f" at timestep {self.timestep:g}" if self.timestep != 500.0 else ""
        return f"{self.rows} row{'s' * (self.rows > 1)}{'' if self.is_deep else ', shallow'}{noisy}"


@dataclass(frozen=True)
class Ready:
    """A contestant that can be timed; a call has ended when its device has.

    Attributes:
        evaluate: U-Net evaluations: one alone without a profile, with it all that its steps ask for.
        counts: How many of each a picture takes.
        decode: One picture decoded, where asked for.
        in_use: Says what really ran, once it has.
    """

    evaluate: Mapping[Evaluation, Callable[[], object]]
    counts: Mapping[Evaluation, int]
    decode: Callable[[], object] | None
    in_use: Callable[[], str]


def open_contestant(
    one: Contestant,
    size_px: int,
    rows: int,
    threads: int,
    decoder: DecoderChoice = "none",
    device: str = "cpu",
    num_steps: int = 1,
    left_out: tuple[str, ...] = (),
) -> Ready:
    """Return a contestant, ready.

    Args:
        one: Which.
        size_px: Side of the picture, px.
        rows: Of one evaluation; with a profile, two say that it guides where it says so.
        threads: Of OpenVINO; torch's are the process's.
        decoder: Which autoencoder decodes beside it, with fresh weights, where it has no choice of its own.
        device: Where torch runs.
        num_steps: Of a picture, where its profile does not say.
        left_out: Layers of a U-Net in int8 that stay in wide numbers, by name.

    Raises:
        InvalidValue: OpenVINO on a GPU, CUDA graphs on a CPU, or what a peer cannot do.
        Unavailable: What a backend needs is not installed.
    """
    import torch

    from vega_diffusion.inference.backends.open import Weights
    from vega_diffusion.inference.backends.torch_eager import PRECISIONS
    from vega_diffusion.inference.components import choose_dtype

    plan, backend, precision, wide_from = _course(one, rows, num_steps, device)
    if device != "cpu" and not backend.startswith("torch"):
        raise InvalidValue("contestants", str(one), f"torch backends on {device}", "time others with --device cpu")
    if backend == CPP:
        return _open_cpp(one, precision, size_px, rows, threads, plan, decoder_of(one, decoder))
    spec, digest, build = _model(one.model, device)
    with torch.device("meta"):
        count = sum(p.numel() for p in _built(spec).parameters())
    own = PRECISIONS[choose_dtype("auto", torch.device(device), count)]
    precision = own if precision == "own" else precision
    on_openvino = backend.startswith("openvino")
    dtype = torch.float32 if on_openvino else _dtype_of(one, precision, own)
    decode = _decoder(backend, precision, dtype, spec, size_px, threads, decoder_of(one, decoder), device)
    side = size_px // spec.autoencoder.downscale
    if backend == PLAIN:
        from vega_diffusion.benchmarks.openvino_plain import PlainUNet

        plain = PlainUNet(build(torch.float32), random_question(spec, side, rows), precision, threads)
        evaluate = {evaluation: plain.evaluate for evaluation in plan}
        return Ready(evaluate, plan, decode, lambda: f"{PLAIN} {plain.precision_in_use()}")
    sample = random_question(spec, side, 1)
    # Torch asks for its network at every call; OpenVINO once, to convert, and nobody must hold SDXL's then: it does not
    # fit into 24 GB beside its conversion.
    provider = partial(build, dtype) if on_openvino else cache(partial(_torch_unet, build, dtype, precision))
    denoiser = _denoiser(
        backend,
        precision,
        Weights(digest, provider),
        sample,
        threads,
        may_fall_back=bool(one.profile),
        wide_from=wide_from,
        left_out=left_out,
    )
    evaluate = {}
    for evaluation in plan:
        question = random_question(spec, side, evaluation.rows, evaluation.timestep)
        asked = question if on_openvino else question.mapped(partial(_narrowed, dtype, device))
        evaluate[evaluation] = _ended(_asking(denoiser, asked, evaluation.is_deep, _reuses(plan)), device)
    beside = "" if device == "cpu" else f" on {device}"
    return Ready(evaluate, plan, decode and _ended(decode, device), lambda: _told(denoiser.in_use) + beside)


def _dtype_of(one: Contestant, precision: str, own: Precision) -> Any:
    """Return the dtype of a contestant in torch: 8-bit layers lie between others in that of the engine's choice."""
    from vega_diffusion.inference.backends.torch_eager import PRECISIONS

    dtypes = {text: dtype for dtype, text in PRECISIONS.items()}
    if precision not in (*dtypes, "int8"):
        raise InvalidValue("contestants", str(one), f"of torch: {', '.join(dtypes)}, int8", "choose one of them")
    return dtypes[own if precision == "int8" else precision]


def _torch_unet(build: Callable[[Any], Any], dtype: Any, precision: str) -> Any:
    from vega_diffusion.inference.backends.torch_int8 import in_8_bits

    unet = build(dtype)
    return in_8_bits(unet) if precision == "int8" else unet


def _open_cpp(
    one: Contestant,
    precision: str,
    size_px: int,
    rows: int,
    threads: int,
    plan: Mapping[Evaluation, int],
    decoder: DecoderChoice,
) -> Ready:
    from vega_diffusion.models.build import build_component

    if decoder != "none" or one.model not in PRESETS:
        raise InvalidValue("contestants", str(one), "a preset, without a decoder", "time its U-Net alone")
    spec = PRESETS[one.model]
    peer = CppUNet(spec, partial(build_component, spec), precision, size_px, rows, threads)
    return Ready({evaluation: peer.step for evaluation in plan}, plan, None, lambda: peer.in_use)


def decoder_of(one: Contestant, given: DecoderChoice) -> DecoderChoice:
    """Return what decodes a contestant's pictures: its own choice, its profile's, or the one given for all."""
    return one.decoder or (PROFILES[one.profile].decoder if one.profile else given)


def _course(
    one: Contestant, rows: int, num_steps: int, device: str
) -> tuple[dict[Evaluation, int], str, Any, int | None]:
    """Return what a picture asks of a contestant's U-Net, with its route here: int8 where VNNI is, as if calibrated."""
    if one.profile is None:
        return {Evaluation(rows, True): num_steps}, one.backend, one.precision, None
    profile = PROFILES[one.profile]
    guided = rows > 1 and (profile.guidance_scale is None or profile.guidance_scale > 1)
    plan = StepPlan.of(profile.num_steps or num_steps, profile.guidance_interval, profile.reuse, guided)
    route = profile.routes[-1]
    if device == "cpu":
        from vega_diffusion.inference.backends.openvino_runtime import cpu_features

        route = next(each for each in profile.routes if each.precision != "int8" or cpu_features().vnni)
    count, asked = len(plan.deep), Counter[Evaluation]()
    for step, (twice, deep) in enumerate(zip(plan.guided, plan.deep, strict=True)):
        t = 1000 * (count - 1 - step) // count + 1  # SDXL's own spacing, "leading"
        is_wide = route.wide_from is not None and t >= route.wide_from
        asked[Evaluation(1 + twice, deep, *([WIDE_T] if is_wide else []))] += 1
    return dict(asked), route.backend, route.precision, route.wide_from


def _reuses(plan: Mapping[Evaluation, int]) -> bool:
    return not all(evaluation.is_deep for evaluation in plan)


def _asking(denoiser: Any, question: Question, is_deep: bool, keeps: bool) -> Callable[[], object]:
    """Return one evaluation as the engine asks for it: a deep one whose states are kept answers with them."""
    if not is_deep:
        kept: list[Any] = []

        def shallow() -> object:
            if not kept:  # in the warm-up
                kept.append(denoiser.full(question)[1])
            return denoiser.shallow(question, kept[0])

        return shallow
    return partial(denoiser.full if keeps else denoiser.predict, question)


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


def random_question(spec: ModelSpec, side: int, rows: int, timestep: float = 500.0) -> Question:
    """Return a question of random numbers for a U-Net at a timestep, float32."""
    import torch

    from vega_diffusion.inference.plan import example_question

    generator = torch.Generator().manual_seed(0)

    def filled(tensor: Any) -> Any:
        if tensor.ndim == 1:
            return torch.full_like(tensor, timestep)
        return torch.randn(tensor.shape, generator=generator)

    return example_question(spec.unet, rows, side, side).mapped(filled)


def _denoiser(
    backend: str,
    precision: Any,
    weights: Weights,
    question: Question,
    threads: int,
    may_fall_back: bool,
    wide_from: int | None,
    left_out: tuple[str, ...],
) -> Any:
    from vega_diffusion.benchmarks.random_int8 import CALIBRATION, random_rule
    from vega_diffusion.inference.backends.faults import Route
    from vega_diffusion.inference.backends.open import Opening, open_denoiser

    if backend == GRAPHS:
        from vega_diffusion.inference.backends.torch_compiled import TorchCompiled

        assert weights.provider is not None, "contestants have weights"
        return TorchCompiled(weights.provider, channels_last=True, cuda_graphs=True)
    rule, samples = random_rule(left_out), [question] * CALIBRATION
    opening = Opening(say=_say, num_threads=threads, may_fall_back=may_fall_back, rule=rule, keep_blobs=False)
    route = Route(backend, precision)  # type: ignore[arg-type]
    return open_denoiser(route, weights, opening, questions=lambda: samples, wide_from=wide_from)


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
    """Return what decodes one picture in a contestant's backend; tiny decoders have no 8 bits."""
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
    from vega_diffusion.benchmarks.openvino_decoders import random_decoder
    from vega_diffusion.inference.backends.open import decoder_beside, precision_beside

    digest = f"random-{choice}-{spec.family}-seed-0"
    if choice == "tiny":
        return random_decoder("tiny-vae-decoder", precision_beside(precision), network, digest, latents, threads)
    return random_decoder("vae-decoder", decoder_beside(precision), network, digest, latents, threads)


def _decoded(vae: Any, latents: Any) -> Any:
    import torch

    with torch.inference_mode():
        return vae.decode(latents, return_dict=False)[0]


def _narrowed(dtype: Any, device: str, tensor: Any) -> Any:
    return tensor.to(device, dtype if tensor.ndim > 1 else tensor.dtype)


def model_of(name: str) -> ModelSpec:
    """Return the spec of a preset or of a model folder."""
    from vega_diffusion.models.detect import load_spec
    from vega_diffusion.specs.presets import preset

    folder = Path(name).expanduser()
    return preset(name) if name in PRESETS or not folder.is_dir() else load_spec(folder)


def _model(name: str, device: str = "cpu") -> tuple[ModelSpec, str, Callable[[Any], Any]]:
    """Return a model's spec, what names its weights, and what builds its U-Net in a dtype."""
    import torch

    from vega_diffusion.models.checkpoint import load_unet
    from vega_diffusion.models.digest import model_digest

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
