"""Opening a backend by name: the one place that knows them all, and that follows the table of faults.

`open_denoiser` opens exactly what is asked or, when asked to, goes along the order of `faults.py`; what it ended with
is in `in_use`, and every step aside is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from vega_diffusion.errors import InvalidValue
from vega_diffusion.inference.backends.faults import WAYS_OUT, BackendFault, Fault, Route, Say, next_route
from vega_diffusion.inference.backends.protocol import (
    MAX_ROWS,
    Denoiser,
    LatentDecoder,
    Precision,
    Question,
    TextEncoder,
)
from vega_diffusion.inference.backends.quantise_rule import DECODER_RULE, QuantisationRule

if TYPE_CHECKING:
    from torch import Tensor

    from vega_diffusion.inference.backends.openvino_denoiser import Guarded, Networks

PartName = Literal["unet", "vae-decoder", "tiny-vae-decoder", "text-encoder", "text-encoder-2"]
CALIBRATED: tuple[PartName, ...] = ("unet", "vae-decoder")
QUIET: Say = lambda line: None  # noqa: E731


@dataclass(frozen=True)
class Opening:
    """How a backend is opened; nothing in it depends on the model.

    Attributes:
        say: Gets every line that a user should see, one a call.
        num_threads: CPU threads of OpenVINO; 0 leaves the number to it.
        num_streams: How many evaluations of a U-Net run at the same time, the threads shared between them.
        max_rows: Most rows of one evaluation, a power of two: each holds inner states of its own.
        may_fall_back: Whether another precision of the same backend may take the place of one that is not possible.
        home: Where conversions are kept: `$VEGA_HOME/openvino` unless given.
        rule: How a U-Net's int8 is made.
        decoder_rule: How a decoder's int8 is made.
        max_shapes: How many shapes of each graph stay compiled.
        keep_blobs: Whether compiled networks are stored, too.
    """

    say: Say = QUIET
    num_threads: int = 1
    num_streams: int = 1
    max_rows: int = MAX_ROWS
    may_fall_back: bool = True
    home: Path | None = None
    rule: QuantisationRule = field(default_factory=QuantisationRule)
    decoder_rule: QuantisationRule = DECODER_RULE
    max_shapes: int = 4
    keep_blobs: bool = True


@dataclass(frozen=True)
class Weights:
    """The torch module behind a part, and what names it.

    Attributes:
        digest: Of the weights, LoRAs included: the same digest must mean the same numbers.
        provider: Returns the module; torch backends ask at every call, OpenVINO only to convert. None: there is none,
            and OpenVINO uses what is kept or fails.
        release: Called when OpenVINO has converted and needs the module no more.
    """

    digest: str
    provider: Callable[[], Any] | None
    release: Callable[[], None] = lambda: None


def open_denoiser(
    route: Route,
    weights: Weights,
    opening: Opening | None = None,
    branch: int = 0,
    questions: Callable[[], Iterable[Question]] | None = None,
    wide_from: int | None = None,
) -> Denoiser:
    """Open a U-Net in a backend and a precision.

    Args:
        route: Which.
        weights: Of the U-Net. In torch, its dtype must be the precision, or its layers in 8 bits (`torch_int8.py`);
            OpenVINO converts from float32, so give it float32 weights where memory allows no copy.
        opening: How.
        branch: Where shallow steps are cut (`split.py`).
        questions: Calibration questions for int8, called only when it must be made.
        wide_from: As in `specs/profile.py`.

    Raises:
        BackendFault: The route is not possible, nor are those of its backend that may take its place.
        InvalidValue: No such route, or the U-Net's numbers are others than the precision.
    """
    opening = opening or Opening()
    match route.backend:
        case "torch" | "torch-compiled":
            return _open_torch(route, weights, branch)
        case "openvino":
            from vega_diffusion.inference.backends.openvino_denoiser import OpenVinoDenoiser

            return OpenVinoDenoiser(open_unet(route.precision, weights, opening, branch, questions, wide_from))
        case _:
            assert_never(route.backend)


def open_first(
    routes: Sequence[Route],
    weights: Weights,
    opening: Opening | None = None,
    branch: int = 0,
    questions: Callable[[], Iterable[Question]] | None = None,
) -> Denoiser:
    """Open the first of several routes that this machine has, saying in one line why one was passed over.

    Raises:
        BackendFault: None is possible; the last one's.
    """
    opening = opening or Opening()
    for route, following in zip(routes, [*routes[1:], None], strict=True):
        try:
            return open_denoiser(route, weights, opening, branch, questions)
        except BackendFault as fault:
            if following is None:
                raise
            opening.say(f"{route}: {fault.fault.value}; going on with {following}")
    raise InvalidValue("routes", (), "one route or more", "name a backend")


def open_decoder(
    precision: Precision,
    weights: Weights,
    opening: Opening | None = None,
    what: PartName = "vae-decoder",
    latents: Callable[[], Iterable[Tensor]] | None = None,
) -> LatentDecoder:
    """Open an autoencoder's decoder in OpenVINO.

    Args:
        precision: `fp32`, `bf16` or `int8-weights`; `int8`, too, for the full one.
        weights: Of the autoencoder, full or tiny.
        opening: How.
        what: `vae-decoder` or `tiny-vae-decoder`, for names and lines.
        latents: `[1, C, h, w]` each, in the autoencoder's own scale, for int8; called only when it must be made.

    Raises:
        BackendFault: Not possible here.
        InvalidValue: No such precision.
    """
    from vega_diffusion.inference.backends.openvino_denoiser import OpenVinoDecoder

    def samples() -> list[Any]:
        from vega_diffusion.inference.backends.calibration import decoder_samples

        assert latents is not None, "else there are no samples"
        return decoder_samples(latents())

    sampled = None if latents is None else samples
    return OpenVinoDecoder(open_networks(what, precision, weights, opening, samples=sampled))


def open_text_encoder(
    precision: Precision, weights: Weights, opening: Opening | None = None, what: PartName = "text-encoder"
) -> TextEncoder:
    """Open a CLIP text encoder in OpenVINO; arguments and errors as for `open_decoder`.

    `what` is `text-encoder` or `text-encoder-2`.
    """
    from vega_diffusion.inference.backends.openvino_denoiser import OpenVinoTextEncoder

    return OpenVinoTextEncoder(open_networks(what, precision, weights, opening))


def precision_beside(unet: Precision) -> Precision:
    """Return the precision of text encoders and tiny decoders beside a U-Net that runs in one, on this CPU.

    They take little time of a picture, so 8 bits would save none worth having; where the U-Net does without bf16, so
    do they.
    """
    from vega_diffusion.inference.backends.openvino_runtime import cpu_features

    return "bf16" if unet != "fp32" and cpu_features().bf16 else "fp32"


def decoder_beside(unet: Precision) -> Precision:
    """Return the precision of the full decoder beside a U-Net that runs in one: its own, where that is int8."""
    return "int8" if unet == "int8" else precision_beside(unet)


def is_calibrated(digest: str, opening: Opening) -> bool:
    """Return whether all that `vega calibrate` makes of a model's weights is there.

    Where it was made and cannot be used any more, that is said; where nobody made it, nothing is.
    """
    lines: list[str] = []
    if all([is_kept(what, "int8", digest, replace(opening, say=lines.append)) for what in CALIBRATED]):
        return True
    if not lines and _was_calibrated(digest, opening):
        lines.append("calibrated by other versions, or only in part; run vega calibrate again")
    for line in lines:
        opening.say(line)
    return False


def is_kept(what: PartName, precision: Precision, digest: str, opening: Opening) -> bool:
    """Return whether a part's networks need only be taken from the disk; damaged ones are said and removed."""
    from vega_diffusion.inference.backends.openvino_graphs import Part, identity_in
    from vega_diffusion.inference.backends.openvino_runtime import RunSettings, cpu_features, require_openvino
    from vega_diffusion.inference.backends.store import Store

    try:
        require_openvino(precision)
    except BackendFault:
        return False
    part = Part(what, digest, _KINDS[what].graphs, detail=_detail(what, 0))
    settings, store = RunSettings(precision, opening.num_threads, cpu_features()), Store(opening.say, opening.home)
    identity = identity_in(store, part, settings, _rule(what, opening))
    remedy = ("run vega calibrate again",) if precision == "int8" else ()
    return store.find(identity, *remedy) is not None


def _was_calibrated(digest: str, opening: Opening) -> bool:
    """Return whether any int8 networks of these weights are kept, and OpenVINO is here to run any."""
    from vega_diffusion.inference.backends.openvino_runtime import require_openvino
    from vega_diffusion.inference.backends.store import Store

    try:
        require_openvino("int8")
    except BackendFault:
        return False
    store = Store(QUIET, opening.home)
    kept = [identity for what in CALIBRATED for identity in store.identities(what)]
    return ("int8", digest) in [(one.get("precision"), one.get("weights")) for one in kept]


def open_unet(
    precision: Precision,
    weights: Weights,
    opening: Opening | None = None,
    branch: int = 0,
    questions: Callable[[], Iterable[Question]] | None = None,
    wide_from: int | None = None,
) -> Networks:
    """Open a U-Net's networks in OpenVINO; arguments and errors as for `open_denoiser`."""
    from vega_diffusion.inference.backends.openvino_denoiser import WideFrom

    def samples() -> list[Any]:
        from vega_diffusion.inference.backends.calibration import as_samples

        assert questions is not None, "else there are no samples"
        return as_samples(questions())

    sampled = None if questions is None else samples
    networks = open_networks("unet", precision, weights, opening, branch, sampled)
    if wide_from is None or networks.in_use.precision != "int8":
        return networks
    return WideFrom(networks, open_networks("unet", precision_beside("int8"), weights, opening, branch), wide_from)


def open_networks(
    what: PartName,
    precision: Precision,
    weights: Weights,
    opening: Opening | None = None,
    branch: int = 0,
    samples: Callable[[], list[Any]] | None = None,
) -> Guarded:
    """Open the networks of a part in OpenVINO: arrays in, arrays out; torch comes in only where one must be made.

    Args:
        what: Which part.
        precision: Of its numbers.
        weights: Its own.
        opening: How.
        branch: Of a U-Net: where shallow steps are cut.
        samples: Inputs of its first network by name, for int8; called only when it must be made.

    Raises:
        BackendFault: Not possible here.
        InvalidValue: No such precision.
    """
    kind = _KINDS[what]
    if precision not in kind.precisions:
        raise _not_allowed(precision, kind.precisions, what)

    def make(module: Any) -> Mapping[str, Any]:
        from vega_diffusion.inference.backends import openvino_convert

        match what:
            case "unet":
                return openvino_convert.unet_exportables(module, branch)
            case "vae-decoder" | "tiny-vae-decoder":
                return openvino_convert.decoder_exportables(module)
            case "text-encoder" | "text-encoder-2":
                return openvino_convert.text_exportables(module)

    plan = _Plan(what, kind.graphs, make, samples, _detail(what, branch))
    return _guarded(precision, weights, opening or Opening(), plan)


@dataclass(frozen=True)
class _Kind:
    """The networks of a part, and the precisions that it can have."""

    graphs: tuple[str, ...]
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8-weights")


_KINDS: dict[PartName, _Kind] = {
    "unet": _Kind(("full", "shallow"), ("fp32", "bf16", "int8", "int8-weights")),
    "vae-decoder": _Kind(("decoder",), ("fp32", "bf16", "int8", "int8-weights")),
    "tiny-vae-decoder": _Kind(("decoder",)),
    "text-encoder": _Kind(("text",)),
    "text-encoder-2": _Kind(("text",)),
}


@dataclass(frozen=True)
class _Plan:
    """What a part's weights do not say: its name, its graphs, how its module becomes them, what they depend on."""

    what: PartName
    graphs: tuple[str, ...]
    make: Callable[[Any], Mapping[str, Any]]
    samples: Callable[[], list[Any]] | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def _open_torch(route: Route, weights: Weights, branch: int) -> Denoiser:
    from vega_diffusion.inference.backends.torch_compiled import TorchCompiled
    from vega_diffusion.inference.backends.torch_eager import TorchEager

    if weights.provider is None:
        raise BackendFault(Fault.NO_WEIGHTS, route, "allowed: torch with weights; give them")
    kind = TorchEager if route.backend == "torch" else TorchCompiled
    denoiser = kind(weights.provider, branch)
    runs = denoiser.in_use.precision
    if route.precision != runs:
        raise _not_allowed(route.precision, (runs,), "unet")
    return denoiser


def _guarded(precision: Precision, weights: Weights, opening: Opening, plan: _Plan) -> Guarded:
    """Open the networks of a part, following the table of faults; later, NaNs are followed the same way."""
    from vega_diffusion.inference.backends.openvino_denoiser import Guarded

    def open_graphs(wanted: Precision) -> Any:
        while True:
            try:
                return _graphs(wanted, weights, opening, plan)
            except BackendFault as fault:
                instead = next_route(fault)
                if instead is None or not opening.may_fall_back:
                    raise
                opening.say(f"{plan.what}: {fault.route}: {fault.fault.value}; going on in {instead.precision}")
                wanted = instead.precision

    return Guarded(open_graphs, precision, opening.say)


def _graphs(precision: Precision, weights: Weights, opening: Opening, plan: _Plan) -> Any:
    """Open the networks of a part in exactly one precision.

    Raises:
        BackendFault: It is not possible.
    """
    from vega_diffusion.inference.backends.openvino_graphs import Graphs, Part
    from vega_diffusion.inference.backends.openvino_runtime import RunSettings, cpu_features, require_openvino
    from vega_diffusion.inference.backends.store import Store

    route = Route("openvino", precision)
    require_openvino(precision)
    features = cpu_features()
    if precision == "bf16" and not features.bf16:
        raise BackendFault(Fault.NO_BF16, route, "allowed: bf16 on a CPU that has it; use fp32")
    if precision == "int8" and not features.vnni:
        opening.say(f"{plan.what}: {route}: {Fault.NO_VNNI.value}; {WAYS_OUT[Fault.NO_VNNI].line}")
    provider = weights.provider
    part = Part(
        plan.what,
        weights.digest,
        plan.graphs,
        None if provider is None else lambda: plan.make(provider()),
        weights.release,
        plan.samples,
        plan.detail,
    )
    num_streams = opening.num_streams if plan.what == "unet" else 1  # what has one row has nothing to share out
    settings = RunSettings(precision, opening.num_threads, features, num_streams, opening.max_rows)
    store = Store(opening.say, opening.home)
    return Graphs(part, settings, store, _rule(plan.what, opening), opening.max_shapes, opening.keep_blobs)


def _detail(what: PartName, branch: int) -> dict[str, int]:
    return {"branch": branch} if what == "unet" else {}


def _rule(what: PartName, opening: Opening) -> QuantisationRule:
    return opening.rule if what == "unet" else opening.decoder_rule


def _not_allowed(precision: Precision, allowed: tuple[Precision, ...], what: str) -> InvalidValue:
    return InvalidValue("precision", precision, f"{', '.join(allowed)} for this {what}", "choose one of them")
