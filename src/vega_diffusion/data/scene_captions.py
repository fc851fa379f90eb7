"""Captions with the scene's exact specification as targets, and no pictures: the data of text-encoder training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vega_diffusion.data.batches import Batch
from vega_diffusion.data.scene_stream import SceneStream
from vega_diffusion.data.scenes.captions import caption_with_mentions
from vega_diffusion.data.scenes.targets import MOST_MENTIONS, mention_targets, spec_targets
from vega_diffusion.data.tokens import Tokenize


class SceneCaptions:
    """Sample p of the run is the caption of scene p: `input_ids`, `input_ids_2` and `target.SLOT` for every slot.

    What the words say of each object stands under `mention.SLOT`, int64 `[B, MOST_MENTIONS]`, and where its name ends
    under `mention_at`.

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
        said = [
            caption_with_mentions(scene, self.seed, position) for scene, position in zip(scenes, positions, strict=True)
        ]
        texts = [text for text, _ in said]
        input_ids, input_ids_2 = self.tokenize(texts)
        longest = int(input_ids.argmax(dim=1).max()) + 1  # the end token has the highest id
        length = min(input_ids.shape[1], -(-longest // 8) * 8)
        input_ids, input_ids_2 = input_ids[:, :length], input_ids_2[:, :length]
        targets = [spec_targets(scene) for scene in scenes]
        tensors = {f"target.{slot}": torch.tensor([target[slot] for target in targets]) for slot in targets[0]}
        mentions = [mention_targets(scene, ends) for scene, (_, ends) in zip(scenes, said, strict=True)]
        tensors |= {f"mention.{slot}": torch.tensor([target[slot] for target in mentions]) for slot in mentions[0]}
        tensors["mention_at"] = self._last_tokens(said, length)
        ids = [f"scene {self.seed}/{position}: {text!r}" for position, text in zip(positions, texts, strict=True)]
        return Batch(ids, tensors | {"input_ids": input_ids, "input_ids_2": input_ids_2})

    def _last_tokens(self, said: Sequence[tuple[str, tuple[int | None, ...]]], length: int) -> Tensor:
        """Return the index of each mention's last token, int64 `[B, MOST_MENTIONS]`; 0 where there is none.

        Words are tokenized one by one, so the text up to a word's end has the same tokens as the whole text has there.
        """
        at = torch.zeros(len(said), MOST_MENTIONS, dtype=torch.int64)
        known = [
            (row, number) for row, (_, ends) in enumerate(said) for number, end in enumerate(ends) if end is not None
        ]
        openings = [said[row][0][: said[row][1][number]] for row, number in known]
        if openings:
            end_tokens = self.tokenize(openings)[0].argmax(dim=1)
            rows, numbers = torch.tensor(known).unbind(dim=1)
            at[rows, numbers] = (end_tokens - 1).clamp(max=length - 1)
        return at

    def fingerprint(self) -> str:
        """Return seed and version."""
        return f"scene_captions seed={self.seed} {self.version}"
