"""LoRAs on a loaded model: injected into its weights while a request needs them, ejected without a trace.

Changed maps get new weights and the old ones are kept, so that ejecting puts back the very same tensors. What a file
holds and how it changes a weight is the matter of `models/lora_*.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Condition, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vega_diffusion.errors import VegaError
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.prompts import TextStack
from vega_diffusion.models.digest import file_digest
from vega_diffusion.models.lora_file import lora_path
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_merge import merge_adapters, merged_weights, restore
from vega_diffusion.models.lora_rows import weights_by_rows
from vega_diffusion.models.lora_weights import LoraWeights, load_lora_for
from vega_diffusion.specs.lora import WeightedLora

_CACHED_FILES = 8
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
Key = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA file that fits the model, and how strongly it acts.

    Attributes:
        sha256: Of the file.
        weight: Factor of its change.
        weights: Its adapters by component and map.
    """

    sha256: str
    weight: float
    weights: LoraWeights


@dataclass
class _Injected:
    """What is in a network now, and the parameters that were there before."""

    component: str
    key: Key
    before: Mapping[nn.Module, nn.Parameter]


class Adapters:
    """The LoRAs of one loaded model; safe to call from several threads.

    Requests under the same LoRAs run side by side; one that needs others waits until those are done.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._files: OrderedDict[tuple[Path, str], LoraWeights] = OrderedDict()
        self._turn = Condition()
        self._users = 0
        self._now: tuple[LoadedLora, ...] = ()
        self._networks: WeakKeyDictionary[nn.Module, _Injected] = WeakKeyDictionary()
        self._weights: WeakKeyDictionary[nn.Module, OrderedDict[Key, Mapping[nn.Module, nn.Parameter]]]
        self._weights = WeakKeyDictionary()
        self._by_rows = False
        self._changing = RLock()

    def load(self, loras: Sequence[str]) -> tuple[LoadedLora, ...]:
        """Read the LoRA files of a request, or take them from the small cache of recent ones.

        Args:
            loras: Each "FILE" or "FILE@WEIGHT".

        Raises:
            VegaError: A file is not there, is no LoRA or does not fit the model, or a weight is no number.
        """
        found = []
        for text in loras:
            file, weight = WeightedLora.parse(text)
            path = lora_path(file)
            sha256 = file_digest(path)
            with self._changing:
                key = (path.resolve(), sha256)
                if key not in self._files:
                    self._files[key] = load_lora_for(path, self._tree)
                self._files.move_to_end(key)
                found.append(LoadedLora(sha256, weight, self._files[key]))
                if len(self._files) > _CACHED_FILES:
                    self._files.popitem(last=False)
        return tuple(found)

    def check(self, loras: Sequence[str], recorded: Mapping[str, str]) -> None:
        """Check that the LoRAs which a record names and a request still names are the same files.

        Args:
            loras: Of the request.
            recorded: As the record names a LoRA -> SHA-256 of its file then.

        Raises:
            VegaError: A file has changed, or is not there.
        """
        then = {WeightedLora.parse(text).file: sha256 for text, sha256 in recorded.items()}
        for file in (WeightedLora.parse(text).file for text in loras):
            if file in then and file_digest(lora_path(file)) != then[file]:
                raise VegaError(f"loras: {file!r} has changed since; allowed: the same file; name another one")

    @contextmanager
    def injected(self, loras: tuple[LoadedLora, ...]) -> Iterator[None]:
        """Let these LoRAs, and no others, act on what `unet` and `text_stack` return, for as long as the block lasts.

        A block inside a block with other LoRAs, in one thread, would wait for itself.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._users == 0 or self._shares(loras))
            self._users += 1
            self._now = loras
            self._eject_others()
        try:
            yield
        finally:
            with self._turn:
                self._users -= 1
                self._turn.notify_all()

    @contextmanager
    def by_rows(self, groups: Sequence[tuple[int, tuple[LoadedLora, ...]]]) -> Iterator[None]:
        """Let rows of the U-Net's input be under LoRAs of their own, for as long as the block lasts.

        Where all are under the same, this is `injected`. Else nobody else draws meanwhile.

        Args:
            groups: How many rows, and their LoRAs; rows beyond the last group's are counted to it.
        """
        if len({lora_key(loras) for _, loras in groups}) == 1:
            with self.injected(groups[0][1]):
                yield
            return
        with self._turn:
            self._turn.wait_for(lambda: self._users == 0)
            self._users, self._now, self._by_rows = 1, (), True
            self._eject_others()
        try:
            unet = self._components.unet()
            with weights_by_rows([(rows, self._merged(unet, loras)) for rows, loras in groups]):
                yield
        finally:
            with self._turn:
                self._users, self._by_rows = 0, False
                self._turn.notify_all()

    def unet(self) -> Any:
        """Return the U-Net under the LoRAs of the present block."""
        return self._inject("unet", self._components.unet())

    def text_stack(self) -> TextStack:
        """Return tokenizers and text encoders under the LoRAs of the present block."""
        stack = self._components.text_stack()
        for name, encoder in zip(_TEXT_ENCODERS, stack.encoders, strict=True):
            self._inject(name, encoder)
        return stack

    def eject(self) -> None:
        """Put back the model's own weights, bit for bit; a request that names no LoRA does so by itself."""
        with self.injected(()):
            pass

    def text_key(self, loras: tuple[LoadedLora, ...]) -> Key:
        """Return what tells encoded texts apart: the LoRAs among these that change a text encoder."""
        return lora_key(tuple(one for one in loras if any(name in one.weights for name in _TEXT_ENCODERS)))

    @cached_property
    def _tree(self) -> MapTree:
        return MapTree.of_spec(self._components.spec, self._components.name)

    def _shares(self, loras: tuple[LoadedLora, ...]) -> bool:
        """Whether who draws now does so under these LoRAs."""
        return not self._by_rows and lora_key(self._now) == lora_key(loras)

    def _merged(self, unet: nn.Module, loras: tuple[LoadedLora, ...]) -> Mapping[nn.Module, nn.Parameter]:
        """Return the U-Net's weights that LoRAs change, or take them from the small cache of recent ones."""
        key = lora_key(loras)
        with self._changing, torch.inference_mode(False):
            kept = self._weights.setdefault(unet, OrderedDict())
            if key not in kept:
                parts = [(one.weights["unet"], one.weight) for one in loras if "unet" in one.weights]
                kept[key] = merged_weights(unet, "unet", parts)
            kept.move_to_end(key)
            if len(kept) > _CACHED_FILES:
                kept.popitem(last=False)
            return kept[key]

    def _own(self, component: str) -> tuple[LoadedLora, ...]:
        return tuple(one for one in self._now if component in one.weights)

    def _inject(self, component: str, network: nn.Module) -> nn.Module:
        with self._changing, torch.inference_mode(False):
            own = self._own(component)  # under the lock: who asks from outside a block must see the LoRAs of now
            if lora_key(own) and network not in self._networks:
                parts = [(one.weights[component], one.weight) for one in own]
                before = merge_adapters(network, component, parts)
                self._networks[network] = _Injected(component, lora_key(own), before)
        return network

    def _eject_others(self) -> None:
        """Put back the weights of every network that holds other LoRAs than it now should."""
        with self._changing:
            for network, state in list(self._networks.items()):
                if state.key != lora_key(self._own(state.component)):
                    restore(state.before)
                    del self._networks[network]


def lora_key(loras: tuple[LoadedLora, ...]) -> Key:
    """Return what tells sets of LoRAs apart: those that do something."""
    return tuple((one.sha256, one.weight) for one in loras if one.weight)
