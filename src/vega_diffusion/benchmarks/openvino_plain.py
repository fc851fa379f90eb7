"""A peer: diffusers' U-Net as `openvino.convert_model` takes it, compiled for one shape, with nothing of ours in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vega_diffusion.inference.backends.openvino_convert import quiet_tools
from vega_diffusion.inference.backends.openvino_runtime import CompiledNetwork, require_openvino
from vega_diffusion.inference.backends.protocol import Precision, Question


class _Wrapped(nn.Module):
    """A U-Net of tensors alone."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        added = None if time_ids is None else {"text_embeds": pooled_prompt_embeds, "time_ids": time_ids}
        return self.unet(x_t, timesteps, prompt_embeds, added_cond_kwargs=added, return_dict=False)[0]


class PlainUNet:
    """The converted U-Net and the one question it is timed with."""

    def __init__(self, unet: Any, question: Question, precision: Precision, threads: int) -> None:
        """Convert and compile.

        Args:
            unet: In float32.
            question: Fixes the shape.
            precision: fp32 or bf16, by OpenVINO's hint.
            threads: Of OpenVINO.
        """
        openvino = require_openvino(precision)
        from openvino.tools.ovc import convert_model

        named = {name: tensor.float() for name, tensor in question.named().items()}
        with quiet_tools(), torch.inference_mode(False), torch.no_grad():
            model = convert_model(_Wrapped(unet).eval(), example_input=named)
        model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, named.values(), strict=True)})
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        self._compiled = CompiledNetwork(openvino.Core().compile_model(model, "CPU", properties))
        self._arrays = {name: tensor.numpy() for name, tensor in named.items()}

    def evaluate(self) -> object:
        """Run once."""
        return self._compiled.run(self._arrays)

    def precision_in_use(self) -> Precision:
        """Return what the heavy layers run in."""
        return "bf16" if self._compiled.layer_precisions["bf16"] else "fp32"
