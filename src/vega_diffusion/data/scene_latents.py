"""Batches from a latent cache: fresh latents, one of the captions (as tokens or encoded), now and then no caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vega_diffusion.data.batches import Batch, SampleKey
from vega_diffusion.data.latent_cache import LatentCache
from vega_diffusion.data.order import ShuffledOrder
from vega_diffusion.data.prompt_cache import PromptCache
from vega_diffusion.data.tokens import Tokenize
from vega_diffusion.diffusion.randomness import PositionRng, derive_seed
from vega_diffusion.specs.data import SceneLatentsSpec


class SceneLatents:
    """Denoising batches: `latents`, `time_ids`, the caption and, with zeros for no caption, `keep`.

    The caption is `input_ids` and `input_ids_2`, or `prompt_embeds` and `pooled_prompt_embeds` where they are cached.

    Args:
        spec: Rates and the meaning of an empty caption.
        cache: The encoded scenes.
        tokenize: Both tokenizers.
        scaling_factor: Of the autoencoder; stored latents times this have a standard deviation near 1.
        version: Identity of scenes, autoencoder and tokenizers, for the fingerprint.
        prompts: The captions as frozen encoders read them; None gives token ids.
    """

    def __init__(
        self,
        spec: SceneLatentsSpec,
        cache: LatentCache,
        tokenize: Tokenize,
        scaling_factor: float,
        version: str,
        prompts: PromptCache | None = None,
    ) -> None:
        self.spec, self.cache, self.tokenize = spec, cache, tokenize
        self.scaling_factor, self.version, self.prompts = scaling_factor, version, prompts
        self.order = ShuffledOrder(len(cache), spec.seed)

    def load(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions; every draw is a function of (seed, position)."""
        spec = self.spec
        rng = PositionRng(derive_seed(spec.seed, "samples"), positions)
        rows = [self.order.index(position) for position in positions]
        posteriors = torch.from_numpy(np.stack([self.cache.posteriors[row] for row in rows])).float()
        mean, std = posteriors.unbind(1)
        latents = (mean + std * rng.normal(mean.shape[1:], "posterior")) * self.scaling_factor
        choice = rng.integers(0, spec.captions_per_scene, "caption").tolist()
        kept = rng.uniform("empty") >= spec.empty_caption_rate
        time_ids = torch.from_numpy(np.stack([self.cache.time_ids[row] for row in rows])).float()
        chosen = [
            (row, number) if keep else None for row, number, keep in zip(rows, choice, kept.tolist(), strict=True)
        ]
        captions = ["" if pair is None else self.cache.captions[pair[0]][pair[1]] for pair in chosen]
        tensors = {"latents": latents, "time_ids": time_ids} | self._condition(chosen, captions)
        if spec.empty_condition == "zeros":
            tensors["keep"] = kept
        return Batch([f"scene {spec.seed}/{row}" for row in rows], tensors, captions)

    def keys(self, positions: Sequence[int]) -> list[SampleKey]:
        """Return what decides the samples at these positions: the cache's identity, scene and position."""
        shape = tuple(self.cache.posteriors.shape[2:])
        spec = self.spec
        made = f"{self.version} {self.cache.folder.name} {spec.seed} {spec.empty_caption_rate} {spec.empty_condition}"
        return [SampleKey(f"{made} scene {self.order.index(position)} at {position}", shape) for position in positions]

    def _condition(self, chosen: Sequence[tuple[int, int] | None], captions: Sequence[str]) -> dict[str, Tensor]:
        """Return the condition of (scene, caption number) pairs; None is the empty caption."""
        if self.prompts is not None:
            width = self.spec.captions_per_scene
            rows = [None if pair is None else pair[0] * width + pair[1] for pair in chosen]
            embeds, pooled = self.prompts.take(rows)
            return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        input_ids, input_ids_2 = self.tokenize(captions)
        return {"input_ids": input_ids, "input_ids_2": input_ids_2}

    def fingerprint(self) -> str:
        """Return the identity of cache and tokenizers, and the length of the cache."""
        return f"scene_latents {self.version} scenes={len(self.cache)}"
