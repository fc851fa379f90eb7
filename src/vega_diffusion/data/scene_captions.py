"""Captions with the scene's exact specification as targets, and no pictures: the data of text-encoder training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scene_stream import SceneStream
from vega_diffusion.data.scenes.captions import caption
from vega_diffusion.data.scenes.targets import spec_targets
from vega_diffusion.data.tokens import Tokenize


class SceneCaptions:
    """Sample p of the run is the caption of scene p: `input_ids`, `input_ids_2` and `target.SLOT` for every slot.

    Args:
        stream: Chooses the scenes.
        tokenize: Both tokenizers.
        seed: Seed of scenes and phrasings.
        version: Digest of stream and tokenizers, for the fingerprint.
    """

    def __init__(self, stream: SceneStream, tokenize: Tokenize, seed: int, version: str) -> None:
        self.stream, self.tokenize, self.seed, self.version = stream, tokenize, seed, version

    def load(self, positions: Sequence[int]) -> Batch:
        """Return token ids `[B, L]`, L the longest caption rounded up to 8, and class numbers `[B]`.

        CLIP's encoders are causal: what stands up to a caption's end token does not see the padding behind it, and a
        caption has 14 tokens of 77 on average.
        """
        scenes = [self.stream(self.seed, position) for position in positions]
        texts = [caption(scene, self.seed, position) for scene, position in zip(scenes, positions, strict=True)]
        input_ids, input_ids_2 = self.tokenize(texts)
        longest = int(input_ids.argmax(dim=1).max()) + 1  # the end token has the highest id
        length = min(input_ids.shape[1], -(-longest // 8) * 8)
        input_ids, input_ids_2 = input_ids[:, :length], input_ids_2[:, :length]
        targets = [spec_targets(scene) for scene in scenes]
        tensors = {f"target.{slot}": torch.tensor([target[slot] for target in targets]) for slot in targets[0]}
        ids = [f"scene {self.seed}/{position}: {text!r}" for position, text in zip(positions, texts, strict=True)]
        return Batch(ids, tensors | {"input_ids": input_ids, "input_ids_2": input_ids_2})

    def fingerprint(self) -> str:
        """Return seed and version."""
        return f"scene_captions seed={self.seed} {self.version}"
