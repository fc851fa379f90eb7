"""From torch modules to networks that OpenVINO stores: U-Net (whole and shallow), VAE decoder, text encoders.

A stored network leaves batch, size and text length open; it becomes static when it is compiled for a shape, so that
all shapes share one file of weights. Nothing is compiled or run here.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from vega_diffusion.inference.backends.openvino_runtime import require_openvino
from vega_diffusion.inference.backends.protocol import Question
from vega_diffusion.inference.backends.split import FullGraph, ShallowGraph, deep_shape

_TEXT_LENGTH = 77
# Axes whose length differs between calls, by name of the input.
_FREE_AXES: dict[str, tuple[int, ...]] = {
    "x_t": (0, 2, 3),
    "timesteps": (0,),
    "prompt_embeds": (0, 1),
    "pooled_prompt_embeds": (0,),
    "time_ids": (0,),
    "timestep_cond": (0,),
    "deep": (0, 2, 3),
    "latents": (0, 2, 3),
    "token_ids": (0,),
}
_tools = Lock()


@dataclass(frozen=True)
class Exportable:
    """A module to convert.

    Attributes:
        module: Plain tensors in, plain tensors out.
        example: An input of every name that its `forward` takes; float32, except for token ids.
        outputs: Names of what it returns.
    """

    module: nn.Module
    example: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class DecoderGraph(nn.Module):
    """An autoencoder's decoder as a module of plain tensors."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Return `[N, 3, H, W]` from `[N, C, h, w]`."""
        return self.vae.decode(latents, return_dict=False)[0]


class TextGraph(nn.Module):
    """A CLIP text encoder as a module of plain tensors."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, token_ids: Tensor) -> tuple[Tensor, ...]:
        """Return the penultimate hidden states `[N, L, D]` and, with a projection, the pooled output `[N, P]`."""
        output = self.encoder(token_ids, output_hidden_states=True)
        pooled = (output[0],) if output[0].ndim == 2 else ()
        return (output.hidden_states[-2], *pooled)


def unet_exportables(unet: Any, branch: int) -> dict[str, Exportable]:
    """Return the graphs `full` and `shallow` of a U-Net; its weights are copied when they are not float32."""
    unet = _in_float32(unet)
    question = _example_question(unet)
    named = {name: tensor.float() for name, tensor in question.named().items()}
    deep = torch.randn(deep_shape(unet, question, branch))
    return {
        "full": Exportable(FullGraph(unet, branch, any_size=True), named, ("prediction", "deep")),
        "shallow": Exportable(ShallowGraph(unet, branch), _in_forward_order(named, deep), ("prediction",)),
    }


def decoder_exportables(vae: Any) -> dict[str, Exportable]:
    """Return the graph `decoder` of an autoencoder, full or tiny."""
    latents = torch.randn(1, vae.config.latent_channels, 8, 8)
    return {"decoder": Exportable(DecoderGraph(_in_float32(vae)), {"latents": latents}, ("image",))}


def text_exportables(encoder: Any) -> dict[str, Exportable]:
    """Return the graph `text` of a CLIP text encoder."""
    length = min(_TEXT_LENGTH, encoder.config.max_position_embeddings)
    ids = torch.full((1, length), encoder.config.eos_token_id)
    outputs = ("hidden", "pooled") if hasattr(encoder, "text_projection") else ("hidden",)
    return {"text": Exportable(TextGraph(_in_float32(encoder)), {"token_ids": ids}, outputs)}


def convert(exportable: Exportable) -> Any:
    """Return an `openvino.Model` with free batch, sizes and text length; it may share memory with the module."""
    require_openvino()
    from openvino.tools.ovc import convert_model  # a program may have imported `openvino` without it

    example = dict(exportable.example)
    shapes = [
        (name, [-1 if axis in _FREE_AXES[name] else length for axis, length in enumerate(tensor.shape)])
        for name, tensor in example.items()
    ]
    with quiet_tools(), torch.inference_mode(False), torch.no_grad():
        model = convert_model(_traced(exportable.module.eval(), example), example_input=example, input=shapes)
    _forget_traces()
    for port, name in zip(model.outputs, exportable.outputs, strict=True):
        port.get_tensor().set_names({name})
    return model


def _traced(module: Any, example: dict[str, Tensor]) -> Any:
    """Return a module as OpenVINO reads it; torch does not trace it a second time to compare, which takes as long."""
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    return TorchScriptPythonDecoder(module, example_input=example, trace_kwargs={"check_trace": False})


@contextlib.contextmanager
def quiet_tools() -> Iterator[None]:
    """Run OpenVINO's or NNCF's tools without telemetry, progress bars and tracer warnings.

    Both send usage data to their makers unless they believe to be in continuous integration, and print bars to stdout,
    where our own output goes.
    """
    with _tools, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = os.environ.get("CI")
        os.environ["CI"] = "true"
        try:
            yield
        finally:
            os.environ.pop("CI") if before is None else os.environ.update(CI=before)


def _in_float32(module: Any) -> Any:
    """Return the module in float32 on the CPU, for tracing; a copy when it is not so already."""
    if module.dtype == torch.float32 and module.device.type == "cpu":
        return module
    with torch.inference_mode(False):
        return copy.deepcopy(module).to("cpu", torch.float32)


def _in_forward_order(named: Mapping[str, Tensor], deep: Tensor) -> dict[str, Tensor]:
    """Return a question's tensors and `deep` in the order of `ShallowGraph.forward`."""
    first = {name: named[name] for name in ("x_t", "timesteps", "prompt_embeds")}
    return first | {"deep": deep} | {name: tensor for name, tensor in named.items() if name not in first}


def _example_question(unet: Any) -> Question:
    """Return a question for tracing: two rows, and the smallest latents that shrink at every level without a rest."""
    config = unet.config
    rows, cells = 2, 2 ** (unet.num_upsamplers + 1)
    pooled = sizes = None
    if config.addition_embed_type == "text_time":
        pooled = torch.randn(rows, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
        sizes = torch.full((rows, 6), 128.0)
    return Question(
        torch.randn(rows, config.in_channels, cells, cells),
        torch.tensor([900.0, 100.0]),
        torch.randn(rows, _TEXT_LENGTH, config.cross_attention_dim),
        pooled,
        sizes,
        None if config.time_cond_proj_dim is None else torch.randn(rows, config.time_cond_proj_dim),
    )


def _forget_traces() -> None:
    """Drop torch's registry of traced classes, which keeps the weights of every traced module alive."""
    recursive: Any = import_module("torch.jit._recursive")
    state: Any = import_module("torch.jit._state")
    torch._C._jit_clear_class_registry()
    recursive.concrete_type_store = recursive.ConcreteTypeStore()
    state._clear_class_state()
    gc.collect()
