"""The plain backend: diffusers' own modules, called as they are; the reference for every other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from vega_diffusion.inference.backends.protocol import InUse, Precision, Question
from vega_diffusion.inference.backends.split import check_branch, full_pass, shallow_pass
from vega_diffusion.inference.backends.text_maps import text_maps_kept
from vega_diffusion.inference.backends.torch_int8 import is_in_8_bits

PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


class TorchEager:
    """A U-Net in torch, with whatever adapters are injected into it at the time of the call.

    `predict` calls the U-Net itself, so its answers are diffusers' bit for bit, hooks included; `full` and `shallow`
    call its layers and give the same bits.
    """

    def __init__(self, unet_provider: Callable[[], Any], branch: int = 0, channels_last: bool = False) -> None:
        """Wrap a U-Net.

        Args:
            unet_provider: Returns the U-Net, on its device and in its dtype; asked at every call, because the owner
                may have dropped and read it again.
            branch: Where `full` and `shallow` are cut (`split.py`).
            channels_last: Lay out the weights of convolutions channels last: faster on GPUs, and not bit-equal. The
                values of the weights stay as they are.

        Raises:
            InvalidValue: The U-Net has no such branch.
        """
        self._provider, self._branch, self._channels_last = unet_provider, branch, channels_last
        self._laid_out: WeakSet[Any] = WeakSet()
        check_branch(self._unet(), branch)

    @property
    def in_use(self) -> InUse:
        """What really runs: read from the U-Net's layers and parameters."""
        unet = self._unet()
        precision = "int8" if is_in_8_bits(unet) else PRECISIONS[unet.dtype]
        return InUse("torch", precision, False, (str(unet.device),))

    @torch.inference_mode()
    def predict(self, question: Question) -> Tensor:
        """Return the prediction `[N, C, h, w]`."""
        question = self._prepared(question)
        return self._unet()(
            question.x_t,
            question.timesteps,
            encoder_hidden_states=question.prompt_embeds,
            timestep_cond=question.timestep_cond,
            added_cond_kwargs={"text_embeds": question.pooled_prompt_embeds, "time_ids": question.time_ids},
            return_dict=False,
        )[0]

    @torch.inference_mode()
    def full(self, question: Question) -> tuple[Tensor, Tensor]:
        """Return the prediction `[N, C, h, w]` and the hidden state at the cut."""
        return full_pass(self._unet(), self._prepared(question), self._branch)

    @torch.inference_mode()
    def shallow(self, question: Question, deep: Tensor) -> Tensor:
        """Return the prediction from the layers above the cut and `deep`."""
        return shallow_pass(self._unet(), self._prepared(question), deep, self._branch)

    def text_kept(self) -> AbstractContextManager[None]:
        """Return a context for one run, in which keys and values of its prompts are computed once."""
        return text_maps_kept(self._unet())

    def close(self) -> None:
        """Lay the weights out as before."""
        for unet in self._laid_out:
            unet.to(memory_format=torch.contiguous_format)
        self._laid_out.clear()

    def _unet(self) -> Any:
        unet = self._provider()
        if self._channels_last and unet not in self._laid_out:
            with torch.inference_mode(False):
                unet.to(memory_format=torch.channels_last)
            self._laid_out.add(unet)
        return unet

    def _prepared(self, question: Question) -> Question:
        if not self._channels_last:
            return question
        named = question.named()
        return Question(**named | {"x_t": question.x_t.contiguous(memory_format=torch.channels_last)})
