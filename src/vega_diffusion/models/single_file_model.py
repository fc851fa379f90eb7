"""Single-file checkpoints of whole models: a model folder written as one, and one read into a model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open

from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel
from vega_diffusion.models.build import build_component
from vega_diffusion.models.checkpoint import load_component, load_tokenizer
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.digest import file_digest
from vega_diffusion.models.export import DTYPES, new_folder, write_description, write_weights
from vega_diffusion.models.layout import TOKENIZERS, WEIGHT_STEMS, Precision, WeightName, find_weights
from vega_diffusion.models.safetensors_file import write_safetensors
from vega_diffusion.models.single_file import UNET_PREFIX, from_single_file, to_single_file
from vega_diffusion.models.tokenizer import TokenizerFiles
from vega_diffusion.specs.architecture import ModelSpec
from vega_diffusion.specs.presets import PRESETS

if TYPE_CHECKING:
    from torch import Tensor

SPEC_KEY = "vega_spec"
"""Metadata entry in which our files keep the spec of their model; others are told by their shapes."""

# Empty tensors by which ComfyUI and others know that a model predicts v, and that its last step is pure noise.
PREDICTS_V, ZERO_SNR = "v_pred", "ztsnr"


def write_single_file(folder: Path, output: Path, precision: Precision | None = None) -> tuple[ModelSpec, int]:
    """Write a model folder as one file; it appears complete or not at all.

    The whole model is in memory once. Tokenizers are not in such files: programs bring CLIP's own along.

    Args:
        folder: A model folder (`find.resolve_model`).
        output: The new file, replaced if it is there.
        precision: Of the numbers; None is that of the folder's U-Net.

    Returns:
        The model's spec, which the file's metadata hold as well, and the number of tensors.

    Raises:
        InvalidValue: The model predicts what such files cannot say.
        VegaError: The model cannot be read, or the file cannot be written.
    """
    spec = load_spec(folder)
    dtype = DTYPES[precision or find_weights(folder, "unet").precision]
    tensors = {name: torch.tensor([]) for name in _marks(spec)}
    for component in WEIGHT_STEMS:
        tensors |= to_single_file(component, load_component(folder, spec, component, dtype).state_dict())
    write_safetensors(output, tensors, {"modelspec.title": spec.name, SPEC_KEY: spec.to_json()})
    return spec, len(tensors)


def write_model_folder(
    file: Path, output: Path, tokenizers: Path, precision: Precision | None = None
) -> tuple[ModelSpec, list[str]]:
    """Write a single-file checkpoint as a model folder; it appears complete or not at all.

    What model it is its metadata say, where we wrote it, else the names and shapes of its U-Net, which must be those
    of a known one. What is no weight of the model (an average, position ids, a logit scale) is left.

    Args:
        file: A safetensors file.
        output: The new folder; an older one is replaced at the end.
        tokenizers: A model folder whose tokenizers the model uses; such files hold none.
        precision: Of the weight files; None is that of the file's U-Net, fp32 for bfloat16.

    Returns:
        The spec as written, and the names of the tensors that were left.

    Raises:
        MissingFile: The file or a tokenizer is not there.
        UnreadableModel: It is truncated, no safetensors file, or of a model that is not known here.
        VegaError: The folder cannot be written.
    """
    vocabularies = [TokenizerFiles.of(load_tokenizer(tokenizers, name)) for name in TOKENIZERS]
    with _opened(file) as (shapes, metadata, read):
        spec = _spec_of(file, shapes, metadata).model_copy(update={"name": output.resolve().name})
        for name, words in zip(TOKENIZERS, vocabularies, strict=True):
            _check_size(spec, name, 1 + max(words.vocab.values()), tokenizers)
        # bfloat16 fits into float32 without loss, and not into float16.
        is_fp16 = read(f"{UNET_PREFIX}input_blocks.0.0.weight").dtype == torch.float16
        wanted = precision or ("fp16" if is_fp16 else "fp32")
        with new_folder(output) as place:
            for component in WEIGHT_STEMS:
                with torch.device("meta"):
                    module: Any = build_component(spec, component)
                keys = module.state_dict().keys()
                state = {key: one.contiguous() for key, one in from_single_file(component, keys, read).items()}
                module.load_state_dict(state, assign=True)
                write_weights(place, cast("WeightName", component), module, (wanted,))
            for name, words in zip(TOKENIZERS, vocabularies, strict=True):
                words.write(place / name)
            write_description(place, spec, {"single_file": {"file": file.name, "sha256": file_digest(file)}})
        taken = {PREDICTS_V, ZERO_SNR}.union(*(_shapes(spec, component) for component in WEIGHT_STEMS))
    return spec, sorted(shapes.keys() - taken)


def _marks(spec: ModelSpec) -> tuple[str, ...]:
    match spec.schedule.prediction_type:
        case "epsilon":
            return ()
        case "v_prediction":
            return (PREDICTS_V, ZERO_SNR) if spec.schedule.rescale_betas_zero_snr else (PREDICTS_V,)
        case other:
            raise InvalidValue(
                "prediction_type", other, "epsilon or v_prediction in a single file", "keep the model folder"
            )


@contextmanager
def _opened(file: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Mapping[str, str], Any]]:
    """Yield the shapes of a file's tensors, its metadata, and what reads a tensor."""
    if not file.is_file():
        raise MissingFile(f"FILE: {str(file)!r} is not there; give a safetensors file")
    try:
        with safe_open(file, "pt") as opened:
            # Not an iterable of keys but a handle with a method that lists them.
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
            yield shapes, opened.metadata() or {}, opened.get_tensor
    except SafetensorError as error:
        raise UnreadableModel(f"{file}: truncated or no safetensors file ({error}); fetch the file again") from error


def _spec_of(file: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> ModelSpec:
    """Return the spec whose tensors a file holds, all of them in their shapes.

    Raises:
        UnreadableModel: There is none; the message says what is nearest and what it lacks.
    """
    if SPEC_KEY in metadata:
        stated = ModelSpec.from_json(metadata[SPEC_KEY])
        _refuse_misfit(file, stated, shapes)
        return stated
    known = [spec for spec in PRESETS.values() if spec.is_sdxl_shaped]
    width = (shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight") or (0,))[0]
    candidates = [spec for spec in known if spec.unet.block_out_channels[0] == width] or known
    unfit = {spec.name: _misfits(spec, "unet", shapes) for spec in candidates}
    nearest = min(candidates, key=lambda spec: len(unfit[spec.name]))
    own = sum(key.startswith(UNET_PREFIX) for key in shapes)
    if unfit[nearest.name] or own != len(_shapes(nearest, "unet")):
        first = f" (first: {unfit[nearest.name][0]})" if unfit[nearest.name] else ""
        raise UnreadableModel(
            f"{file}: its U-Net of {own} tensors is of no known model; nearest is {nearest.name}, of which "
            f"{len(unfit[nearest.name])} tensors are missing or of another shape{first}; allowed: single files of "
            f"{', '.join(spec.name for spec in known)}; give a model folder"
        )
    _refuse_misfit(file, nearest, shapes)
    changes = {"prediction_type": "v_prediction" if PREDICTS_V in shapes else "epsilon"}
    schedule = nearest.schedule.model_copy(update=changes | {"rescale_betas_zero_snr": ZERO_SNR in shapes})
    return nearest.model_copy(update={"schedule": schedule})


def _refuse_misfit(file: Path, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for component in WEIGHT_STEMS:
        missing = _misfits(spec, component, shapes)
        if missing:
            raise UnreadableModel(
                f"{file}: {component} of {spec.name}: {len(missing)} tensors are missing or of another shape (first: "
                f"{missing[0]}); allowed: whole models; complete it in the program that wrote it"
            )


def _misfits(spec: ModelSpec, component: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [key for key, shape in _shapes(spec, component).items() if shapes.get(key) != shape]


def _shapes(spec: ModelSpec, component: str) -> dict[str, tuple[int, ...]]:
    """Return what a single file holds of a component; nothing is allocated."""
    with torch.device("meta"):
        state: dict[str, Tensor] = build_component(spec, component).state_dict()
        return {key: tuple(tensor.shape) for key, tensor in to_single_file(component, state).items()}


def _check_size(spec: ModelSpec, name: str, size: int, tokenizers: Path) -> None:
    encoder = spec.text_encoder if name == TOKENIZERS[0] else spec.text_encoder_2
    assert encoder is not None, "an SDXL-shaped model"
    if size > encoder.vocab_size:
        raise InvalidValue(
            "--tokenizers", str(tokenizers), f"{name} of at most {encoder.vocab_size} words, not {size}", "name another"
        )
